//! A package index as keys and values: pure.

use anyhow::Context;
use std::collections::HashMap;

/// One package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Distinct among all items.
    pub(crate) key: String,
    /// The stanza as it stands in the index, without the empty line after it.
    pub(crate) stanza: String,
}

/// Cuts an index into its stanzas and gives each a key of its own: the package's name where that is the only one
/// of its name, else `NAME=VERSION:ARCHITECTURE`, as an index of several releases or architectures has it. Where a
/// stanza stands twice even so, the later ones get `#2`, `#3` and so on.
pub(crate) fn items(index: &str) -> anyhow::Result<Vec<Item>> {
    let stanzas: Vec<&str> = index.split("\n\n").map(|s| s.trim_matches('\n')).filter(|s| !s.is_empty()).collect();
    let mut names = HashMap::<&str, u32>::new();
    for stanza in &stanzas {
        let start = || stanza.chars().take(60).collect::<String>();
        let name = field(stanza, "Package").with_context(|| format!("a stanza without `Package: `: {:?}", start()))?;
        *names.entry(name).or_default() += 1;
    }
    let mut used = HashMap::<String, u32>::new();
    let key = |stanza: &str| {
        let name = field(stanza, "Package").unwrap_or_default();
        let mut key = name.to_owned();
        if names.get(name).is_some_and(|n| *n > 1) {
            let version = field(stanza, "Version").unwrap_or("?");
            let architecture = field(stanza, "Architecture").unwrap_or("?");
            key = format!("{name}={version}:{architecture}");
        }
        let times = used.entry(key.clone()).or_default();
        *times += 1;
        if *times > 1 { format!("{key}#{times}") } else { key }
    };
    let keys: Vec<String> = stanzas.iter().copied().map(key).collect();
    Ok(keys.into_iter().zip(stanzas).map(|(key, stanza)| Item { key, stanza: stanza.to_owned() }).collect())
}

fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_distinct() {
        let index = "Package: a\nVersion: 1\n\nPackage: b\nVersion: 1:2+b\nArchitecture: amd64\n\n\n\
                     Package: b\nVersion: 1\nArchitecture: all\nDescription: ü\n\nPackage: b\nVersion: 1\nArchitecture: all\n";
        let keys: Vec<_> = items(index).expect("valid").into_iter().map(|i| i.key).collect();
        assert_eq!(keys, ["a", "b=1:2+b:amd64", "b=1:all", "b=1:all#2"]);
    }

    #[test]
    fn stanzas_are_kept_as_they_are() {
        let index = "Package: a\nDescription: x\n .\n ünïcödé\n\n\nPackage: b";
        let stanzas: Vec<_> = items(index).expect("valid").into_iter().map(|i| i.stanza).collect();
        assert_eq!(stanzas, ["Package: a\nDescription: x\n .\n ünïcödé", "Package: b"]);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        assert_eq!(items("").expect("empty"), []);
        assert!(items("Version: 1\n").is_err());
    }
}
