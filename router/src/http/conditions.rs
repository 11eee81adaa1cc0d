//! ETags, and requests that depend on them: RFC 9110, sections 8.8.3 and 13.1.
//!
//! The ETag of a value is its version in quotes, as in `"0-17"`. It names the write, not the bytes: the same bytes
//! written again have another ETag.

use hyper::header::{HeaderMap, HeaderName, IF_MATCH, IF_NONE_MATCH};
use kv_proto::{ids::Version, request::Condition};

/// Why conditional headers cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ConditionError {
    /// The header is not as RFC 9110 has it.
    #[error("{0}: {1:?} is neither * nor a list of ETags in quotes")]
    Malformed(HeaderName, String),
    /// What the header asks for is nothing that a write can depend on here.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// The ETag of a version.
pub(super) fn etag(version: Version) -> String {
    format!("\"{version}\"")
}

/// What a write depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteCondition {
    /// What the leader decides.
    Decide(Condition),
    /// An ETag that no value can have: the write fails whatever is there.
    Never,
}

/// The condition of a PUT or DELETE.
pub(super) fn of_write(headers: &HeaderMap) -> Result<WriteCondition, ConditionError> {
    match (Tags::of(headers, IF_MATCH)?, Tags::of(headers, IF_NONE_MATCH)?) {
        (None, None) => Ok(WriteCondition::Decide(Condition::Any)),
        (Some(Tags::Any), None) => Ok(WriteCondition::Decide(Condition::Present)),
        (None, Some(Tags::Any)) => Ok(WriteCondition::Decide(Condition::Absent)),
        (Some(Tags::These(tags)), None) => match tags[..] {
            // A weak ETag never equals another in If-Match, and one of ours is the text of a version.
            [tag] if tag.weak => Ok(WriteCondition::Never),
            [tag] => Ok(tag.version().map_or(WriteCondition::Never, |v| WriteCondition::Decide(Condition::Version(v)))),
            _ => Err(ConditionError::Unsupported("If-Match of a write takes * or one ETag")),
        },
        (None, Some(Tags::These(_))) => Err(ConditionError::Unsupported(
            "If-None-Match of a write takes only *; to replace a known version use If-Match",
        )),
        (Some(_), Some(_)) => Err(ConditionError::Unsupported("a write takes If-Match or If-None-Match, not both")),
    }
}

/// What becomes of a GET or HEAD by its conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// The value is sent.
    Send,
    /// The caller has it: 304.
    NotModified,
    /// It is not the value that the caller meant: 412.
    Failed,
}

/// Checks the conditions of a GET or HEAD against the value that is there.
pub(super) fn check_read(headers: &HeaderMap, current: Option<Version>) -> Result<Read, ConditionError> {
    let matches = |tags: Tags<'_>, weak_too: bool| match (current, tags) {
        (None, _) => false,
        (Some(_), Tags::Any) => true,
        (Some(current), Tags::These(tags)) => {
            tags.iter().any(|t| (weak_too || !t.weak) && t.version() == Some(current))
        }
    };
    if Tags::of(headers, IF_MATCH)?.is_some_and(|tags| !matches(tags, false)) {
        return Ok(Read::Failed);
    }
    if Tags::of(headers, IF_NONE_MATCH)?.is_some_and(|tags| matches(tags, true)) {
        return Ok(Read::NotModified);
    }
    Ok(Read::Send)
}

enum Tags<'a> {
    Any,
    These(Vec<Tag<'a>>),
}

#[derive(Clone, Copy)]
struct Tag<'a> {
    weak: bool,
    opaque: &'a str,
}

impl Tag<'_> {
    fn version(self) -> Option<Version> {
        // Only the text that this version is written as: "0-017" is somebody else's ETag.
        self.opaque.parse::<Version>().ok().filter(|v| v.to_string() == self.opaque)
    }
}

impl<'a> Tags<'a> {
    fn of(headers: &'a HeaderMap, name: HeaderName) -> Result<Option<Tags<'a>>, ConditionError> {
        let mut tags = Vec::new();
        let mut any = false;
        for value in headers.get_all(&name) {
            let text = String::from_utf8_lossy(value.as_bytes());
            let malformed = || ConditionError::Malformed(name.clone(), text.to_string());
            let list = value.to_str().map_err(|_| malformed())?;
            if list.trim() == "*" {
                any = true;
                continue;
            }
            let mut rest = list.trim_matches([' ', '\t', ',']);
            if rest.is_empty() {
                return Err(malformed());
            }
            while !rest.is_empty() {
                let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
                let opened = quoted.strip_prefix('"').ok_or_else(malformed)?;
                let (opaque, after) = opened.split_once('"').ok_or_else(malformed)?;
                tags.push(Tag { weak, opaque });
                let next = after.trim_start_matches([' ', '\t', ',']);
                if !next.is_empty() && !after.trim_start().starts_with(',') {
                    return Err(malformed());
                }
                rest = next;
            }
        }
        match (any, tags.is_empty()) {
            (false, true) => Ok(None),
            (true, true) => Ok(Some(Tags::Any)),
            (false, false) => Ok(Some(Tags::These(tags))),
            (true, false) => Err(ConditionError::Malformed(name, "* beside ETags".to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::{HistoryId, Lsn};

    fn version(history: u32, lsn: u64) -> Version {
        Version { history: HistoryId(history), lsn: Lsn(lsn) }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair =
            |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().expect("a value"));
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn writes() {
        let decide = |condition| Ok(WriteCondition::Decide(condition));
        for (pairs, expected) in [
            (&[][..], decide(Condition::Any)),
            (&[("if-match", "*")], decide(Condition::Present)),
            (&[("if-none-match", "*")], decide(Condition::Absent)),
            (&[("if-match", "\"3-17\"")], decide(Condition::Version(version(3, 17)))),
            (&[("if-match", " \"3-17\" , ")], decide(Condition::Version(version(3, 17)))),
            (&[("if-match", "W/\"3-17\"")], Ok(WriteCondition::Never)),
            (&[("if-match", "\"3-017\"")], Ok(WriteCondition::Never)),
            (&[("if-match", "\"abc\"")], Ok(WriteCondition::Never)),
        ] {
            assert_eq!(of_write(&headers(pairs)), expected, "{pairs:?}");
        }
        for pairs in [
            &[("if-match", "\"3-17\", \"3-18\"")][..],
            &[("if-match", "\"3-17\""), ("if-match", "\"3-18\"")],
            &[("if-match", "*"), ("if-match", "\"3-18\"")],
            &[("if-match", "*"), ("if-none-match", "*")],
            &[("if-none-match", "\"3-17\"")],
            &[("if-match", "3-17")],
            &[("if-match", "\"3-17")],
            &[("if-match", "\"3-17\"x")],
            &[("if-match", "\"3-17\" \"3-18\"")],
            &[("if-match", "")],
            &[("if-match", ",")],
        ] {
            assert!(of_write(&headers(pairs)).is_err(), "{pairs:?}");
        }
    }

    #[test]
    fn reads() {
        for (pairs, current, expected) in [
            (&[][..], None, Read::Send),
            (&[("if-none-match", "\"3-17\"")], Some(version(3, 17)), Read::NotModified),
            (&[("if-none-match", "W/\"3-17\"")], Some(version(3, 17)), Read::NotModified),
            (&[("if-none-match", "\"a\", \"3-17\"")], Some(version(3, 17)), Read::NotModified),
            (&[("if-none-match", "*")], Some(version(3, 17)), Read::NotModified),
            (&[("if-none-match", "\"3-17\"")], Some(version(3, 18)), Read::Send),
            (&[("if-none-match", "*")], None, Read::Send),
            (&[("if-match", "\"3-17\"")], Some(version(3, 17)), Read::Send),
            (&[("if-match", "W/\"3-17\"")], Some(version(3, 17)), Read::Failed),
            (&[("if-match", "\"3-17\"")], Some(version(4, 17)), Read::Failed),
            (&[("if-match", "*")], None, Read::Failed),
        ] {
            assert_eq!(check_read(&headers(pairs), current), Ok(expected), "{pairs:?} {current:?}");
        }
    }
}
