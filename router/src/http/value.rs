//! Between JSON values and what is stored: bytes with a content type.
//!
//! | JSON | stored | content type |
//! |---|---|---|
//! | a string | its text | `text/plain; charset=utf-8` |
//! | a string with half a surrogate pair, which is no text | its JSON | `application/json` |
//! | everything else | its JSON, character by character | `application/json` |
//!
//! And back, whoever stored it: `application/json` that is valid is JSON again, other UTF-8 is a string, and other bytes
//! are a string in base64 beside `"encoding": "base64"`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Content type of JSON.
pub(super) const JSON: &str = "application/json";
/// Content type of text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";
/// Content type of bytes of which nothing is known.
pub(super) const BYTES: &str = "application/octet-stream";

/// What is stored for a JSON value, and its content type.
pub(super) fn to_stored(value: &RawValue) -> (Cow<'_, [u8]>, &'static str) {
    let text = value.get();
    if text.starts_with('"')
        && let Ok(string) = serde_json::from_str::<String>(text)
    {
        return (Cow::Owned(string.into_bytes()), TEXT);
    }
    (Cow::Borrowed(text.as_bytes()), JSON)
}

/// The JSON answer with a key and its value.
pub(super) fn to_answer(key: &str, content_type: &str, value: &[u8]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(key.len() + value.len() + 64);
    answer.extend_from_slice(b"{\"key\":");
    append_string(&mut answer, key);
    answer.extend_from_slice(b",\"value\":");
    match (is_json(content_type).then(|| serde_json::from_slice::<&RawValue>(value)), std::str::from_utf8(value)) {
        (Some(Ok(json)), _) => answer.extend_from_slice(json.get().as_bytes()),
        (_, Ok(text)) => append_string(&mut answer, text),
        (_, Err(_)) => {
            append_string(&mut answer, &STANDARD.encode(value));
            answer.extend_from_slice(b",\"encoding\":\"base64\"");
        }
    }
    answer.push(b'}');
    answer
}

fn append_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is written to memory");
}

fn is_json(content_type: &str) -> bool {
    let media_type = content_type.split_once(';').map_or(content_type, |(media_type, _)| media_type);
    media_type.trim().eq_ignore_ascii_case(JSON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn stored(json: &str) -> (Vec<u8>, &'static str) {
        let raw = RawValue::from_string(json.to_string()).expect(json);
        let (bytes, content_type) = to_stored(&raw);
        (bytes.into_owned(), content_type)
    }

    fn answered(json: &str) -> String {
        let (bytes, content_type) = stored(json);
        String::from_utf8(to_answer("k", content_type, &bytes)).expect("JSON is text")
    }

    #[test]
    fn every_kind_of_json_comes_back_as_it_was() {
        for json in [
            "1",
            "1.0",
            "-0",
            "1e400",
            "12345678901234567890123",
            "0.1000",
            "true",
            "null",
            "[]",
            "{}",
            "\"\"",
            "\"a b\"",
            "\"42\"",
            "{\"a\":1,\"a\":2}",
            "[1, 2,\n3]",
            "{\"b\":1,\"a\":{\"c\":[null]}}",
            "\"\\ud800\"",
            "\"x\\udfff\\n\"",
            "\"\\\"quoted\\\\\"",
            "\"🔑\"",
        ] {
            assert_eq!(answered(json), format!("{{\"key\":\"k\",\"value\":{json}}}"));
        }
    }

    #[test]
    fn strings_are_stored_as_their_bytes_and_all_else_as_json() {
        for (json, bytes, content_type) in [
            ("\"42\"", "42", TEXT),
            ("42", "42", JSON),
            ("\"\\u0061\\n\"", "a\n", TEXT),
            ("\"\\ud83d\\udd11\"", "🔑", TEXT),
            ("\"\\ud83d\"", "\"\\ud83d\"", JSON),
        ] {
            assert_eq!(stored(json), (bytes.as_bytes().to_vec(), content_type), "{json}");
        }
    }

    #[test]
    fn bytes_that_were_stored_otherwise() {
        for (content_type, bytes, expected) in [
            ("application/json", &b" {\"a\": 1}\n"[..], r#"{"key":"k","value":{"a": 1}}"#),
            ("Application/JSON; charset=utf-8", b"[1]", r#"{"key":"k","value":[1]}"#),
            ("application/json", b"{not json", r#"{"key":"k","value":"{not json"}"#),
            ("application/json", b"1 2", r#"{"key":"k","value":"1 2"}"#),
            ("application/json", b"", r#"{"key":"k","value":""}"#),
            ("application/jsonx", b"1", r#"{"key":"k","value":"1"}"#),
            ("", b"text", r#"{"key":"k","value":"text"}"#),
            ("image/png", b"\x89PNG", r#"{"key":"k","value":"iVBORw==","encoding":"base64"}"#),
            ("application/json", b"\"\xff\"", r#"{"key":"k","value":"Iv8i","encoding":"base64"}"#),
        ] {
            assert_eq!(String::from_utf8(to_answer("k", content_type, bytes)).expect("text"), expected);
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map(any::<String>(), inner, 0..6)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_json_value_round_trips(value in any_json(), key in any::<String>()) {
            let (bytes, content_type) = stored(&value.to_string());
            let answer = String::from_utf8(to_answer(&key, content_type, &bytes)).unwrap();
            prop_assert_eq!(answer, format!("{{\"key\":{},\"value\":{value}}}", Value::from(key)));
        }

        #[test]
        fn any_bytes_are_answered_by_json(
            content_type in "(application/json|text/plain|)", bytes in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            let answer: Value = serde_json::from_slice(&to_answer("k", &content_type, &bytes)).unwrap();
            let decoded = match (answer.get("encoding"), answer["value"].as_str()) {
                (Some(_), Some(text)) => STANDARD.decode(text).unwrap(),
                (None, Some(text)) if content_type != JSON => text.as_bytes().to_vec(),
                _ => bytes.clone(),
            };
            prop_assert_eq!(decoded, bytes);
        }
    }
}
