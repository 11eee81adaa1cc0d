//! Keys and lives from addresses: strict percent-decoding, so that each is taken as it was meant or refused with a
//! reason.

use kv_proto::{ids::MapVersion, limits::MAX_TTL_MS};
use std::{borrow::Cow, time::Duration};

/// Why an address has no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AddressError {
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("bad percent-encoding {0:?}: '%' is followed by two hexadecimal digits, and a '%' itself is written %25")]
    BadEscape(String),
    /// Decoded bytes that are no text.
    #[error("the {0} in the query is not UTF-8 when it is decoded")]
    NotUtf8(&'static str),
    /// More than one key.
    #[error("the query names the key {0} times; it takes one key=…")]
    Repeated(usize),
    /// A life that is none.
    #[error(
        "ttl={0} is no time to live: give seconds from 0.001 to {max} (ten years), as in ttl=60 or ttl=0.5, and once",
        max = MAX_TTL_MS / 1000
    )]
    BadTtl(String),
    /// A version of the map that is none.
    #[error("after={0} is no version of a cluster map: give its number, as in after=17, and once")]
    BadVersion(String),
}

/// The `key` of a query, decoded; `None` if it has none. In a query, `+` is a space. Other parameters are passed over.
pub(super) fn key_of_query(query: &str) -> Result<Option<String>, AddressError> {
    let keys = values_of(query, "key")?;
    match keys[..] {
        [] => Ok(None),
        [key] => text(key, "key").map(Some),
        _ => Err(AddressError::Repeated(keys.len())),
    }
}

/// The `ttl` of a query; `None` if it has none. Other parameters are passed over.
pub(super) fn ttl_of_query(query: &str) -> Result<Option<Duration>, AddressError> {
    match values_of(query, "ttl")?[..] {
        [] => Ok(None),
        [ttl] => {
            let ttl = text(ttl, "ttl")?;
            seconds(&ttl).map(Some).ok_or(AddressError::BadTtl(ttl))
        }
        [first, ..] => Err(AddressError::BadTtl(first.to_owned())),
    }
}

/// The `after` of a query, a version of the map; `None` if it has none.
pub(super) fn after_of_query(query: &str) -> Result<Option<MapVersion>, AddressError> {
    match values_of(query, "after")?[..] {
        [] => Ok(None),
        [after] => {
            let number = after.parse().ok().filter(|_| after.bytes().all(|b| b.is_ascii_digit()));
            number.map(|n| Some(MapVersion(n))).ok_or_else(|| AddressError::BadVersion(after.to_owned()))
        }
        [first, ..] => Err(AddressError::BadVersion(first.to_owned())),
    }
}

/// Seconds with or without decimals, within the bounds of a life.
fn seconds(text: &str) -> Option<Duration> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) {
        return None;
    }
    let nanoseconds = format!("{decimals:0<9}")[..9].parse().ok()?;
    let ttl = Duration::new(whole.parse().ok()?, nanoseconds);
    (Duration::from_millis(1)..=Duration::from_millis(MAX_TTL_MS)).contains(&ttl).then_some(ttl)
}

/// The values of a parameter, as they were sent.
fn values_of<'a>(query: &'a str, wanted: &str) -> Result<Vec<&'a str>, AddressError> {
    let mut values = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if text(name, "name of a parameter")? == wanted {
            values.push(value);
        }
    }
    Ok(values)
}

fn text(encoded: &str, what: &'static str) -> Result<String, AddressError> {
    let spaced = encoded.replace('+', " ");
    let bytes = percent_decode(&spaced)?.into_owned();
    String::from_utf8(bytes).map_err(|_| AddressError::NotUtf8(what))
}

/// The bytes that a part of an address stands for.
pub(super) fn percent_decode(encoded: &str) -> Result<Cow<'_, [u8]>, AddressError> {
    if !encoded.contains('%') {
        return Ok(Cow::Borrowed(encoded.as_bytes()));
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
                let (Some(high), Some(low)) = (digit(high), digit(low)) else { return Err(bad_escape(rest)) };
                decoded.push(high << 4 | low);
                tail
            }
            (b'%', _) => return Err(bad_escape(rest)),
            (byte, tail) => {
                decoded.push(*byte);
                tail
            }
        };
    }
    Ok(Cow::Owned(decoded))
}

fn bad_escape(rest: &[u8]) -> AddressError {
    AddressError::BadEscape(String::from_utf8_lossy(&rest[..rest.len().min(3)]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_of_queries() {
        let bad = |text: &str| Err(AddressError::BadEscape(text.to_string()));
        for (query, expected) in [
            ("", Ok(None)),
            ("other=1", Ok(None)),
            ("key=a", Ok(Some("a"))),
            ("key=", Ok(Some(""))),
            ("key", Ok(Some(""))),
            ("key=a&other=%20", Ok(Some("a"))),
            ("x&&key=a&", Ok(Some("a"))),
            ("key=a=b", Ok(Some("a=b"))),
            ("key=a+b%2Bc", Ok(Some("a b+c"))),
            ("key=%26%25%2F%3F%3d", Ok(Some("&%/?="))),
            ("key=/?", Ok(Some("/?"))),
            ("key=%F0%9F%94%91", Ok(Some("🔑"))),
            ("key=ключ", Ok(Some("ключ"))),
            ("%6Bey=a", Ok(Some("a"))),
            ("Key=a", Ok(None)),
            ("key=a%00b", Ok(Some("a\0b"))),
            ("key=%", bad("%")),
            ("key=a%2", bad("%2")),
            ("key=%zz1", bad("%zz")),
            ("key=%+1", bad("% 1")),
            ("other=%&key=a", Ok(Some("a"))),
            ("%=1&key=a", bad("%")),
            ("key=%ff", Err(AddressError::NotUtf8("key"))),
            ("key=%ED%A0%80", Err(AddressError::NotUtf8("key"))),
            ("key=a&key=a", Err(AddressError::Repeated(2))),
        ] {
            assert_eq!(key_of_query(query), expected.map(|k| k.map(str::to_string)), "{query}");
        }
    }

    #[test]
    fn lives() {
        for (query, ms) in [
            ("", None),
            ("other=1", None),
            ("ttl=1", Some(1000)),
            ("ttl=0.5&x", Some(500)),
            ("a=b&%74tl=0%2E001", Some(1)),
            ("ttl=007.25", Some(7250)),
            ("ttl=315360000", Some(MAX_TTL_MS)),
        ] {
            assert_eq!(ttl_of_query(query), Ok(ms.map(Duration::from_millis)), "{query}");
        }
        assert_eq!(ttl_of_query("ttl=1.0015"), Ok(Some(Duration::from_micros(1_001_500))));
        assert_eq!(ttl_of_query("ttl=1.0000000009"), Ok(Some(Duration::from_secs(1))));
        for ttl in [
            "",
            "0",
            "0.0",
            "0.0009",
            "-1",
            "+1",
            "1.",
            ".5",
            "1e3",
            "1s",
            "inf",
            "NaN",
            "1,5",
            "1 ",
            "0x1",
            "315360000.001",
            "99999999999999999999999",
            "1&ttl=1",
            "٣",
        ] {
            let refused = ttl_of_query(&format!("ttl={ttl}"));
            assert!(matches!(refused, Err(AddressError::BadTtl(_))), "{ttl}: {refused:?}");
        }
        let told = ttl_of_query("ttl=never").expect_err("no number").to_string();
        assert!(told.starts_with("ttl=never is no time to live: give seconds from 0.001 to 315360000"), "{told}");
    }

    proptest! {
        #[test]
        fn any_key_round_trips(key in "\\PC*", lower in any::<bool>()) {
            let escape = |b: &u8| if lower { format!("%{b:02x}") } else { format!("%{b:02X}") };
            let encoded: String = key.as_bytes().iter().map(escape).collect();
            prop_assert_eq!(key_of_query(&format!("key={encoded}")), Ok(Some(key.clone())));
            // As browsers write forms: what need not be encoded is not, and a space is a plus.
            let plain = |c: char| match c {
                ' ' => "+".to_string(),
                '%' | '&' | '+' | '#' => format!("%{:02X}", c as u32),
                _ => c.to_string(),
            };
            let form: String = key.chars().map(plain).collect();
            prop_assert_eq!(key_of_query(&format!("a=b&key={form}&c")), Ok(Some(key)));
        }

        #[test]
        fn any_bytes_round_trip_in_a_path(key in prop::collection::vec(any::<u8>(), 0..50)) {
            let encoded: String = key.iter().map(|b| format!("%{b:02x}")).collect();
            prop_assert_eq!(percent_decode(&encoded).unwrap().into_owned(), key);
        }

        #[test]
        fn garbage_never_panics(query in any::<String>()) {
            let _ = key_of_query(&query);
        }
    }
}
