//! Holds the crate to what its header says: no async, no I/O, no clock, no randomness.

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

fn check(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("the sources") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            check(&path, found);
            continue;
        }
        let source = fs::read_to_string(&path).expect("text");
        let production = source.split("#[cfg(test)]").next().unwrap_or_default();
        let code = production.lines().filter(|l| !l.trim_start().starts_with("//"));
        for (number, line) in code.enumerate() {
            for banned in BANNED.iter().filter(|b| line.contains(**b)) {
                found.push(format!("{}: line {} of code: {banned}", path.display(), number + 1));
            }
        }
    }
}

/// Maps that iterate in an order of chance are banned too: a seed must replay a run exactly.
#[test]
fn the_core_is_pure() {
    let mut found = Vec::new();
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
}
