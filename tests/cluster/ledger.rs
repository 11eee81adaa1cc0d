//! What is known of a key that has one writer: what was acknowledged, what is in doubt, and so what may be there.
//!
//! Keys with many writers are judged by `kv-checker` (see [`crate::shared_keys`]). These rules are stronger where they hold:
//! who is the only writer knows after every request what is there, so each answer is judged at once, and a write in doubt is
//! lost for good with the next one that is acknowledged.
//!
//! The writer gives every value a number that it never used before and makes one request at a time, so that whatever
//! is read names the write that it came from. A write in doubt is not applied after a later one was acknowledged: either the
//! leader has read it before that one, or it is lost with its connection.
//!
//! # Invariants
//! * What was acknowledged stays until a later write takes its place; one in doubt may, and is then as certain.
//! * What was answered by `not_applied` is never seen.
//! * Versions grow from write to write, and a value keeps its version.

use kv_proto::ids::Version;

/// The number of the value that a key has; `None` if it has no value.
pub(crate) type Held = Option<u64>;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was acknowledged.
    Written(Version),
    /// A delete was acknowledged, and there was nothing to delete.
    NotThere,
    /// It was refused, and is said to have changed nothing.
    NotApplied,
    /// It may have been applied.
    Unknown,
}

/// A key and what may be there.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    /// First what was there for certain, then what later writes in doubt may have made of it, in their order.
    may_be: Vec<Held>,
    /// Values that were refused.
    refused: Vec<u64>,
    /// The number of the last value.
    last: u64,
    /// The newest version that was seen, and what has it.
    newest: Option<(Held, Version)>,
}

impl Key {
    pub(crate) fn new(name: String) -> Self {
        Key { name, may_be: vec![None], refused: Vec::new(), last: 0, newest: None }
    }

    /// The number of a new value.
    pub(crate) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// What is there; `None` while that is in doubt.
    pub(crate) fn certain(&self) -> Option<Held> {
        if let [held] = self.may_be[..] { Some(held) } else { None }
    }

    /// Takes note of a write of this.
    ///
    /// # Errors
    /// A sentence, where that cannot be.
    pub(crate) fn wrote(&mut self, held: Held, fate: Fate) -> Result<(), String> {
        match fate {
            Fate::Written(version) => {
                self.may_be = vec![held];
                self.saw(held, version)
            }
            Fate::NotThere => {
                self.read(None)?;
                self.may_be = vec![None];
                Ok(())
            }
            Fate::NotApplied => {
                self.refused.extend(held);
                Ok(())
            }
            Fate::Unknown => {
                self.may_be.push(held);
                Ok(())
            }
        }
    }

    /// Takes note of what was read.
    ///
    /// # Errors
    /// A sentence, where that cannot be.
    pub(crate) fn read(&mut self, found: Option<(u64, Version)>) -> Result<(), String> {
        let held = found.map(|(number, _)| number);
        // Of several writes that may have left nothing the first, so that what came between them still may be.
        let Some(at) = self.may_be.iter().position(|h| *h == held) else {
            let what = match held {
                None => "is gone".to_owned(),
                Some(n) if n > self.last => format!("has value {n}, which was never written"),
                Some(n) if self.refused.contains(&n) => format!("has value {n}, whose write was not_applied"),
                Some(n) => format!("has value {n} of an earlier write"),
            };
            return Err(format!("{} {what}; it may be {:?}", self.name, self.may_be));
        };
        self.may_be.drain(..at);
        found.map_or(Ok(()), |(_, version)| self.saw(held, version))
    }

    fn saw(&mut self, held: Held, version: Version) -> Result<(), String> {
        if let Some((before, newest)) = self.newest {
            let same = held.is_some() && held == before;
            let grows = newest.history == version.history && newest.lsn < version.lsn;
            if if same { version != newest } else { !grows } {
                return Err(format!("{}: {held:?} has version {version}, after {before:?} had {newest}", self.name));
            }
        }
        self.newest = Some((held, version));
        Ok(())
    }

    /// See [`value`].
    pub(crate) fn value(&self, number: u64) -> Vec<u8> {
        value(&self.name, number)
    }

    /// See [`number`].
    ///
    /// # Errors
    /// A sentence, if this key never had such a value.
    pub(crate) fn number(&self, value: &[u8]) -> Result<u64, String> {
        number(&self.name, value)
    }
}

/// The bytes of a key's value with this number: they say whose it is, and are between a few and some thousands.
pub(crate) fn value(key: &str, number: u64) -> Vec<u8> {
    let mut value = format!("{key} {number} ").into_bytes();
    value.resize(value.len() + (number * 2477 % 6007) as usize, b'.');
    value
}

/// The number of the key's value with these bytes.
///
/// # Errors
/// A sentence, if this key never had such a value.
pub(crate) fn number(key: &str, bytes: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(bytes);
    let number = text.split(' ').nth(1).and_then(|n| n.parse().ok());
    let whole = number.filter(|n| value(key, *n) == bytes);
    whole.ok_or_else(|| format!("{key} has bytes that were never written: {text:.100}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::{HistoryId, Lsn};

    fn version(lsn: u64) -> Version {
        Version { history: HistoryId(1), lsn: Lsn(lsn) }
    }

    /// A key with value 1 at version 10.
    fn key() -> Key {
        let mut key = Key::new("k".to_owned());
        let number = key.next();
        key.wrote(Some(number), Fate::Written(version(10))).expect("the first");
        key
    }

    #[track_caller]
    fn refused(result: Result<(), String>, words: &str) {
        let why = result.expect_err(words);
        assert!(why.contains(words), "{why}");
    }

    #[test]
    fn what_was_acknowledged_is_there() {
        assert_eq!(key().read(Some((1, version(10)))), Ok(()));
        refused(key().read(None), "k is gone");
        refused(key().read(Some((1, version(11)))), "Some(1) has version 1-11, after Some(1) had 1-10");
        refused(key().read(Some((7, version(11)))), "value 7, which was never written");
        refused(key().wrote(Some(2), Fate::Written(version(10))), "Some(2) has version 1-10");
        let mut deleted = key();
        assert_eq!(deleted.wrote(None, Fate::Written(version(11))), Ok(()));
        assert_eq!(deleted.read(None), Ok(()));
        refused(deleted.read(Some((1, version(10)))), "value 1 of an earlier write");
        refused(key().wrote(None, Fate::NotThere), "k is gone");
    }

    #[test]
    fn what_is_in_doubt_may_be_there_and_then_stays() {
        let doubtful = || {
            let mut key = key();
            key.next();
            key.wrote(Some(2), Fate::Unknown).expect("possible");
            key.wrote(None, Fate::Unknown).expect("possible");
            assert_eq!(key.certain(), None);
            key
        };
        assert_eq!(doubtful().read(Some((1, version(10)))), Ok(()));
        assert_eq!(doubtful().read(None), Ok(()));
        let mut applied = doubtful();
        assert_eq!(applied.read(Some((2, version(12)))), Ok(()));
        refused(applied.read(Some((1, version(10)))), "value 1 of an earlier write");
        assert_eq!(applied.wrote(None, Fate::NotThere), Ok(()), "the delete");
        assert_eq!(applied.certain(), Some(None));
    }

    #[test]
    fn what_was_refused_is_never_there() {
        let mut key = key();
        key.next();
        assert_eq!(key.wrote(Some(2), Fate::NotApplied), Ok(()));
        assert_eq!(key.wrote(None, Fate::NotApplied), Ok(()));
        assert_eq!(key.certain(), Some(Some(1)));
        refused(key.read(Some((2, version(12)))), "value 2, whose write was not_applied");
        refused(key.read(None), "k is gone");
    }

    #[test]
    fn values_name_their_key_and_number() {
        let key = key();
        for number in [1, 2, 1000] {
            assert_eq!(key.number(&key.value(number)), Ok(number));
        }
        let mut cut = key.value(2);
        cut.pop();
        for wrong in [cut, Vec::new(), Key::new("other".to_owned()).value(1)] {
            assert!(key.number(&wrong).is_err());
        }
    }
}
