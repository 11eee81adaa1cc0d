//! The effect of a record: the payload that logs keep, streams carry and tables apply.
//!
//! It stands on disks for as long as there is data, so it is written by hand. Numbers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | kind: 1 put, 2 delete, 4 outcome, 5 nothing; 3 (atomic batch) is reserved |
//! | 1 | 1 | length of the content type, 0 in all but a put; in an outcome: 1 missing, 2 condition failed |
//! | 2 | 2 | length of the key; 0 in an outcome and in nothing, which go no further than their fields |
//! | 4 | 8 | in a put: when the value expires, in milliseconds since the Unix epoch; 0 is never |
//! | 4 | 8 | in an outcome: the LSN of the value that is there, 0 if there is none; 0 with missing |
//! | … | … | key, content type, value; the value goes to the end |
//!
//! # Invariants
//! * Every effect has exactly one encoding.
//! * What decodes can be applied: its key and its content type are within the limits.

use crate::{
    ids::Lsn,
    limits::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES},
};
use std::num::NonZeroU64;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const OUTCOME: u8 = 4;
const NOTHING: u8 = 5;
const MISSING: u8 = 1;
const CONDITION_FAILED: u8 = 2;
/// Kind and lengths.
const HEADER_BYTES: usize = 4;
const EXPIRY_BYTES: usize = 8;
const LSN_BYTES: usize = 8;

// The field has one byte.
const _: () = assert!(MAX_CONTENT_TYPE_BYTES == 255 && MAX_KEY_BYTES <= u16::MAX as usize);

/// When a value expires: absolute wall-clock time, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Expiry(NonZeroU64);

impl Expiry {
    /// The expiry at this time; `None`, which is never, at 0.
    #[must_use]
    pub fn from_ms(ms: u64) -> Option<Expiry> {
        NonZeroU64::new(ms).map(Expiry)
    }

    /// The expiry of a value that is written at `now_ms` and lives for `ttl_ms`.
    #[must_use]
    pub fn after(now_ms: u64, ttl_ms: NonZeroU64) -> Expiry {
        Expiry(ttl_ms.saturating_add(now_ms))
    }

    /// The time.
    #[must_use]
    pub fn ms(self) -> u64 {
        self.0.get()
    }

    /// Whether the value has expired at `now_ms`.
    #[must_use]
    pub fn is_due(self, now_ms: u64) -> bool {
        self.ms() <= now_ms
    }
}

/// What a record does: an effect, never a command. Conditions were decided before it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// The key has this value from now on.
    Put {
        /// The key.
        key: &'a [u8],
        /// The value's media type.
        content_type: &'a str,
        /// The value.
        value: &'a [u8],
        /// When it expires; `None` is never.
        expires: Option<Expiry>,
    },
    /// The key has no value from now on.
    Delete {
        /// The key.
        key: &'a [u8],
    },
    /// No key changes: the write with the record's operation id was decided to change nothing, and this is the answer
    /// to every attempt of it.
    Outcome(Unchanged),
    /// No key changes. Such a record marks a place in the log.
    Nothing,
}

/// Why a write changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unchanged {
    /// There was nothing to delete.
    Missing,
    /// Its condition did not hold.
    ConditionFailed {
        /// The record that wrote the value that was there instead; 0 if there was none.
        current: Lsn,
    },
}

/// Why a payload is no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectError {
    /// The bytes end before the fields do.
    #[error("an effect of {0} bytes ends early")]
    Short(usize),
    /// A kind that is not known here.
    #[error("an effect of unknown kind {0}")]
    Kind(u8),
    /// A key of no bytes, or of more than may be.
    #[error("an effect with a key of {0} bytes")]
    Key(usize),
    /// A content type that is no text.
    #[error("an effect with a content type that is not UTF-8")]
    ContentType,
    /// A delete that has more than its key.
    #[error("a delete with {0} bytes beside its key")]
    Trailing(usize),
    /// An effect without a key whose fields are not what they may be.
    #[error("an effect of kind {0} whose fields are none of its own")]
    Fields(u8),
}

impl<'a> Effect<'a> {
    /// The key that it changes, if it changes one.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        match *self {
            Effect::Put { key, .. } | Effect::Delete { key } => Some(key),
            Effect::Outcome(_) | Effect::Nothing => None,
        }
    }

    /// The bytes of the effect.
    ///
    /// # Panics
    /// When key or content type are over their limits, which are checked where requests come in.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, key, content_type, value, expires) = match *self {
            Effect::Put { key, content_type, value, expires } => (PUT, key, content_type, value, Some(expires)),
            Effect::Delete { key } => (DELETE, key, "", &[][..], None),
            Effect::Outcome(unchanged) => return unchanged.encode(),
            Effect::Nothing => return vec![NOTHING, 0, 0, 0],
        };
        assert!(
            key.len() <= MAX_KEY_BYTES && content_type.len() <= MAX_CONTENT_TYPE_BYTES,
            "an effect with {} bytes of key and {} of content type",
            key.len(),
            content_type.len()
        );
        let expiry_bytes = if expires.is_some() { EXPIRY_BYTES } else { 0 };
        let mut out = Vec::with_capacity(HEADER_BYTES + expiry_bytes + key.len() + content_type.len() + value.len());
        out.push(kind);
        out.push(content_type.len() as u8);
        out.extend_from_slice(&(key.len() as u16).to_le_bytes());
        if let Some(expires) = expires {
            out.extend_from_slice(&expires.map_or(0, Expiry::ms).to_le_bytes());
        }
        out.extend_from_slice(key);
        out.extend_from_slice(content_type.as_bytes());
        out.extend_from_slice(value);
        out
    }

    /// The effect that `bytes` are, borrowing from them.
    ///
    /// # Errors
    /// When they are not exactly one effect that can be applied.
    pub fn decode(bytes: &'a [u8]) -> Result<Effect<'a>, EffectError> {
        let short = || EffectError::Short(bytes.len());
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or_else(short)?;
        let [kind, content_type_bytes, low, high] = *header;
        let key_bytes = usize::from(u16::from_le_bytes([low, high]));
        let (expires, rest) = match kind {
            PUT => {
                let (ms, rest) = rest.split_first_chunk::<EXPIRY_BYTES>().ok_or_else(short)?;
                (Expiry::from_ms(u64::from_le_bytes(*ms)), rest)
            }
            DELETE => (None, rest),
            OUTCOME => return Unchanged::decode(bytes).map(Effect::Outcome),
            NOTHING if bytes == [NOTHING, 0, 0, 0] => return Ok(Effect::Nothing),
            NOTHING => return Err(EffectError::Fields(NOTHING)),
            unknown => return Err(EffectError::Kind(unknown)),
        };
        if !(1..=MAX_KEY_BYTES).contains(&key_bytes) {
            return Err(EffectError::Key(key_bytes));
        }
        let (key, rest) = rest.split_at_checked(key_bytes).ok_or_else(short)?;
        if kind == DELETE {
            let beside = rest.len() + usize::from(content_type_bytes);
            return if beside == 0 { Ok(Effect::Delete { key }) } else { Err(EffectError::Trailing(beside)) };
        }
        let (content_type, value) = rest.split_at_checked(usize::from(content_type_bytes)).ok_or_else(short)?;
        let content_type = std::str::from_utf8(content_type).map_err(|_| EffectError::ContentType)?;
        Ok(Effect::Put { key, content_type, value, expires })
    }
}

impl Unchanged {
    fn encode(self) -> Vec<u8> {
        let (which, current) = match self {
            Unchanged::Missing => (MISSING, Lsn(0)),
            Unchanged::ConditionFailed { current } => (CONDITION_FAILED, current),
        };
        let mut out = Vec::with_capacity(HEADER_BYTES + LSN_BYTES);
        out.extend_from_slice(&[OUTCOME, which, 0, 0]);
        out.extend_from_slice(&current.0.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Result<Unchanged, EffectError> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(EffectError::Short(bytes.len()))?;
        let (current, rest) = rest.split_first_chunk::<LSN_BYTES>().ok_or(EffectError::Short(bytes.len()))?;
        match (*header, u64::from_le_bytes(*current), rest) {
            ([OUTCOME, MISSING, 0, 0], 0, []) => Ok(Unchanged::Missing),
            ([OUTCOME, CONDITION_FAILED, 0, 0], lsn, []) => Ok(Unchanged::ConditionFailed { current: Lsn(lsn) }),
            _ => Err(EffectError::Fields(OUTCOME)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(effect: &Effect) -> String {
        effect.encode().iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let put = |expires| Effect::Put { key: b"key", content_type: "t/x", value: b"val", expires };
        assert_eq!(hex(&put(None)), "01030300".to_owned() + "0000000000000000" + "6b6579742f7876616c");
        let expires = Expiry::from_ms(0x0102_0304_0506_0708);
        assert_eq!(hex(&put(expires)), "01030300".to_owned() + "0807060504030201" + "6b6579742f7876616c");
        assert_eq!(hex(&Effect::Delete { key: b"key" }), "020003006b6579");
        assert_eq!(hex(&Effect::Outcome(Unchanged::Missing)), "040100000000000000000000");
        let failed = Unchanged::ConditionFailed { current: Lsn(0x0102) };
        assert_eq!(hex(&Effect::Outcome(failed)), "040200000201000000000000");
        assert_eq!(hex(&Effect::Nothing), "05000000");
    }

    #[test]
    fn what_cannot_be_applied_is_refused() {
        let long_key = Effect::Delete { key: &[7; MAX_KEY_BYTES] }.encode();
        assert!(Effect::decode(&long_key).is_ok());
        let mut longer = long_key.clone();
        longer.push(7);
        longer[2..4].copy_from_slice(&(MAX_KEY_BYTES as u16 + 1).to_le_bytes());
        let put = Effect::Put { key: b"k", content_type: "t", value: b"", expires: None }.encode();
        let changed = |at: usize, byte| {
            let mut bytes = put.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, error) in [
            (vec![], EffectError::Short(0)),
            (put[..11].to_vec(), EffectError::Short(11)),
            (put[..13].to_vec(), EffectError::Short(13)),
            (changed(0, 0), EffectError::Kind(0)),
            (changed(0, 3), EffectError::Kind(3)),
            (changed(0, 4), EffectError::Fields(4)),
            (changed(0, 5), EffectError::Fields(5)),
            (changed(0, 6), EffectError::Kind(6)),
            (changed(1, 2), EffectError::Short(14)),
            (changed(2, 0), EffectError::Key(0)),
            (changed(13, 0xFF), EffectError::ContentType),
            (longer, EffectError::Key(MAX_KEY_BYTES + 1)),
            (vec![2, 0, 1, 0, b'k', b'x'], EffectError::Trailing(1)),
            (vec![2, 1, 1, 0, b'k'], EffectError::Trailing(1)),
            (vec![4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], EffectError::Short(11)),
            (vec![4, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], EffectError::Fields(4)),
            (vec![4, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], EffectError::Fields(4)),
            (vec![4, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], EffectError::Fields(4)),
            (vec![5, 0, 0], EffectError::Short(3)),
            (vec![5, 0, 0, 0, 0], EffectError::Fields(5)),
        ] {
            assert_eq!(Effect::decode(&bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn a_life_without_end_is_as_long_as_can_be_told() {
        let longest = Expiry::after(1_000, NonZeroU64::MAX);
        assert_eq!(longest.ms(), u64::MAX);
        let short = Expiry::after(1_000, NonZeroU64::new(5).expect("not 0"));
        assert_eq!((short.is_due(1_004), short.is_due(1_005)), (false, true));
    }

    proptest! {
        #[test]
        fn effects_survive_the_log(
            key in prop::collection::vec(any::<u8>(), 1..40), value in prop::collection::vec(any::<u8>(), 0..100),
            content_type in ".{0,20}", expires in any::<u64>().prop_map(Expiry::from_ms), lsn in any::<u64>().prop_map(Lsn),
        ) {
            let put = Effect::Put { key: &key, content_type: &content_type, value: &value, expires };
            let outcomes = [Unchanged::Missing, Unchanged::ConditionFailed { current: lsn }].map(Effect::Outcome);
            for effect in [put, Effect::Delete { key: &key }, Effect::Nothing].into_iter().chain(outcomes) {
                let bytes = effect.encode();
                prop_assert_eq!(bytes.capacity(), bytes.len());
                prop_assert_eq!(Effect::decode(&bytes), Ok(effect));
            }
        }

        #[test]
        fn garbage_never_panics_and_what_decodes_has_one_encoding(
            kind in 0..7u8, rest in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..60),
        ) {
            let bytes = [&[kind][..], &rest].concat();
            if let Ok(effect) = Effect::decode(&bytes) {
                prop_assert_eq!(effect.encode(), bytes);
            }
        }
    }
}
