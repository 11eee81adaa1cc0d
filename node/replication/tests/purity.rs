//! Holds this crate, and kv-storage, to what their headers say: no async, no I/O, no clock, no randomness.

use std::{fs, path::Path};

const BANNED: &[&str] = &[
    "async ",
    ".await",
    "std::fs",
    "std::net",
    "std::io",
    "std::thread",
    "std::env",
    "std::process",
    "SystemTime",
    "Instant::now",
    "std::time::Instant",
    "tokio",
    "glommio",
    "rand::",
    "getrandom",
    "Mutex",
    "RefCell",
    "unsafe",
    "println!",
    "HashMap",
    "HashSet",
];

/// Whether `line` has `word`, and not as the beginning of a longer one.
fn contains_word(line: &str, word: &str) -> bool {
    let goes_on = |rest: &str| rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') && !word.ends_with(' ');
    line.match_indices(word).any(|(at, _)| word.ends_with(':') || !goes_on(&line[at + word.len()..]))
}

fn check(folder: &Path, allowed: &[&str], found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the sources") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            check(&path, allowed, found);
            continue;
        }
        let source = fs::read_to_string(&path).expect("text");
        let production = source.split("#[cfg(test)]").next().unwrap_or_default();
        let code = production.lines().filter(|l| !l.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            for banned in BANNED.iter().filter(|b| contains_word(line, b) && !allowed.contains(b)) {
                found.push(format!("{}: line {} of code: {banned}", path.display(), number + 1));
            }
        }
    }
}

/// Maps that iterate in an order of chance are banned too: a seed must replay a run exactly.
#[test]
fn the_core_is_pure() {
    let mut found = Vec::new();
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// It names errors and sources of I/O, of which it does none; entries of tables are known by thin pointers.
#[test]
fn what_is_kept_is_pure() {
    let mut found = Vec::new();
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../storage/src"), &["std::io", "unsafe"], &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
}
