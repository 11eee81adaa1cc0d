//! The bodies of the documented API.

use crate::target::text::{self, shown};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use memchr::memchr2;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// How many bytes each byte takes within a JSON string.
const ESCAPED_BYTES: [u8; 256] = {
    let mut bytes = [1; 256];
    let mut b = 0;
    while b < 32 {
        bytes[b] = 6;
        b += 1;
    }
    bytes[b'"' as usize] = 2;
    bytes[b'\\' as usize] = 2;
    bytes
};

/// The length of what [`append_put`] appends.
pub(super) fn put_length(key: &[u8], value: &[u8]) -> usize {
    let length = |text: &[u8]| text.iter().map(|b| usize::from(ESCAPED_BYTES[usize::from(*b)])).sum::<usize>();
    BEFORE_KEY.len() + length(key) + BEFORE_VALUE.len() + length(value) + AFTER_VALUE.len()
}

const BEFORE_KEY: &[u8] = br#"{"key":""#;
const BEFORE_VALUE: &[u8] = br#"","value":""#;
const AFTER_VALUE: &[u8] = br#""}"#;

/// The body of a put, with both as strings.
pub(super) fn append_put(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    out.extend_from_slice(BEFORE_KEY);
    append_escaped(out, key);
    out.extend_from_slice(BEFORE_VALUE);
    append_escaped(out, value);
    out.extend_from_slice(AFTER_VALUE);
}

fn append_escaped(out: &mut Vec<u8>, mut text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    while let Some(at) = text.iter().position(|b| ESCAPED_BYTES[usize::from(*b)] > 1) {
        out.extend_from_slice(&text[..at]);
        match text[at] {
            b @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', b]),
            b => out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]),
        }
        text = &text[at + 1..];
    }
    out.extend_from_slice(text);
}

/// The value in the answer to a get: a string's text, the bytes of one in base64, or the JSON of anything else.
pub(super) fn value<'a>(body: &'a [u8], unescaped: &'a mut Vec<u8>) -> Result<&'a [u8], String> {
    #[derive(Deserialize)]
    struct Got<'a> {
        #[serde(borrow)]
        value: &'a RawValue,
        #[serde(borrow, default)]
        encoding: Option<Cow<'a, str>>,
    }
    if let Some(value) = plain_value(body) {
        return Ok(value);
    }
    let wrong = |e: &dyn std::fmt::Display| format!("{} is no answer with a value: {e}", shown(body));
    let got: Got<'_> = serde_json::from_slice(body).map_err(|e| wrong(&e))?;
    match got.encoding.as_deref() {
        None => {}
        Some("base64") => {
            let text: Cow<'_, str> = serde_json::from_str(got.value.get()).map_err(|e| wrong(&e))?;
            unescaped.clear();
            STANDARD.decode_vec(text.as_bytes(), unescaped).map_err(|e| wrong(&e))?;
            return Ok(unescaped);
        }
        Some(other) => return Err(wrong(&format_args!("the encoding {other:?} is not known"))),
    }
    let json = got.value.get();
    // Half a surrogate pair is a string that is no text; the router keeps its JSON.
    match json.starts_with('"').then(|| serde_json::from_str::<String>(json)) {
        Some(Ok(text)) => {
            *unescaped = text.into_bytes();
            Ok(unescaped)
        }
        _ => Ok(json.as_bytes()),
    }
}

/// The value, if the body is just what the router writes for a text without escapes.
fn plain_value(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(BEFORE_KEY)?;
    let rest = &rest[memchr2(b'"', b'\\', rest)?..];
    let value = rest.strip_prefix(BEFORE_VALUE)?.strip_suffix(AFTER_VALUE)?;
    memchr2(b'"', b'\\', value).is_none().then_some(value)
}

/// What the body of an error tells, of either API.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Told<'a> {
    #[serde(borrow, default)]
    code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub(super) outcome: Option<Cow<'a, str>>,
    #[serde(skip)]
    is_something_else: bool,
}

impl<'a> Told<'a> {
    pub(super) fn of(body: &'a [u8]) -> Told<'a> {
        if body.is_empty() {
            return Told::default();
        }
        serde_json::from_slice(body).unwrap_or(Told { is_something_else: true, ..Told::default() })
    }

    /// Whether a 404 with this says that a key has no value, and not that there is no such address.
    pub(super) fn is_of_a_missing_key(&self) -> bool {
        !self.is_something_else && self.code.as_deref().is_none_or(|code| code == "key_not_found")
    }

    /// The code, if there is one; short and harmless, since it comes from outside.
    pub(super) fn code(self) -> Option<Cow<'static, str>> {
        self.code.map(|code| Cow::Owned(text::word(code.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn of(body: &[u8]) -> Result<Vec<u8>, String> {
        value(body, &mut Vec::new()).map(<[u8]>::to_vec)
    }

    #[test]
    fn values_come_out_of_their_json() {
        for (body, expected) in [
            (r#"{"key":"k","value":"plain"}"#, "plain"),
            (r#"{"key":"k","value":""}"#, ""),
            (r#"{"key":"k","value":"a\"b\\c\n\u0061🔑"}"#, "a\"b\\c\na🔑"),
            (r#"{"key":"a\"b","value":"x"}"#, "x"),
            (r#"{"key":"k\",\"value\":\"no","value":"x"}"#, "x"),
            (r#"{"key":"k","value":42}"#, "42"),
            (r#"{"key":"k","value":{"a":[1, null]}}"#, r#"{"a":[1, null]}"#),
            (r#"{"key":"k","value":"\ud800"}"#, r#""\ud800""#),
            (r#" { "value" : "x" , "key" : "k" , "more": 1 } "#, "x"),
            (r#"{"key":"k","value":"a","encoding":null}"#, "a"),
            (r#"{"key":"k","value":"iVBORw==","encoding":"base64"}"#, "\u{89}PNG"),
        ] {
            let expected: Vec<u8> = expected
                .chars()
                .flat_map(|c| match c {
                    '\u{89}' => vec![0x89],
                    c => c.to_string().into_bytes(),
                })
                .collect();
            assert_eq!(of(body.as_bytes()), Ok(expected), "{body}");
        }
        for body in [
            "",
            "x",
            "[]",
            r#"{"key":"k"}"#,
            r#"{"key":"k","value":"a"b"}"#,
            r#"{"key":"k","value":"!","encoding":"base64"}"#,
            r#"{"key":"k","value":1,"encoding":"base64"}"#,
            r#"{"key":"k","value":"x","encoding":"rot13"}"#,
        ] {
            assert!(of(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn errors_tell_code_and_outcome_where_they_do() {
        for (body, code, outcome, missing) in [
            ("", None, None, true),
            (r#"{"status":"Key not found"}"#, None, None, true),
            (r#"{"code":"key_not_found","outcome":"not_applied"}"#, Some("key_not_found"), Some("not_applied"), true),
            (r#"{"code":"unknown_route","outcome":"not_applied"}"#, Some("unknown_route"), Some("not_applied"), false),
            (r#"{"code":"A\u0007 b"}"#, Some("a__b"), None, false),
            (r#"{"code":1}"#, None, None, false),
            ("<html>", None, None, false),
        ] {
            let told = Told::of(body.as_bytes());
            assert_eq!((told.is_of_a_missing_key(), told.outcome.as_deref()), (missing, outcome), "{body}");
            assert_eq!(told.code().as_deref(), code, "{body}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_written_as_json_has_it(key in any::<String>(), text in any::<String>()) {
            let mut out = Vec::new();
            append_put(&mut out, key.as_bytes(), text.as_bytes());
            prop_assert_eq!(out.len(), put_length(key.as_bytes(), text.as_bytes()));
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), json!({"key": key, "value": text}));
            prop_assert_eq!(of(&out), Ok(text.into_bytes()));
        }

        #[test]
        fn any_body_is_taken_or_told_to_be_wrong(body in "(\\PC|[{}\":,a-z]){0,60}") {
            let _ = of(body.as_bytes());
            let _ = Told::of(body.as_bytes()).code();
        }
    }
}
