//! The JSON bodies of the documented API.
//!
//! Values are not interpreted: a value is handed out as its own text, so that whatever number, nesting or order of
//! fields a user wrote is what is kept. Fields that are not known are passed over.

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{error::Category, value::RawValue};
use std::{borrow::Cow, fmt};

/// Why a body cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// It is not JSON.
    #[error("the body is not valid JSON: {0}")]
    NotJson(String),
    /// It is JSON of another shape.
    #[error("the body must be a JSON object like {shape}: {what}")]
    Shape {
        /// The shape that it should have.
        shape: &'static str,
        /// How it differs.
        what: String,
    },
}

const PUT_SHAPE: &str = r#"{"key": "name", "value": 1}"#;
const KEY_SHAPE: &str = r#"{"key": "name"}"#;

/// What to put.
#[derive(Debug)]
pub(super) struct Put<'a> {
    /// The key.
    pub(super) key: Cow<'a, str>,
    /// The text of the value.
    pub(super) value: &'a RawValue,
}

/// Reads the body of a put.
pub(super) fn parse_put(body: &[u8]) -> Result<Put<'_>, BodyError> {
    let fields = Fields::parse(body, PUT_SHAPE)?;
    let missing = |name| BodyError::Shape { shape: PUT_SHAPE, what: format!("the field \"{name}\" is missing") };
    let key = key(fields.key.ok_or_else(|| missing("key"))?, PUT_SHAPE)?;
    Ok(Put { key, value: fields.value.ok_or_else(|| missing("value"))? })
}

/// Reads the body of a get; `None` if there is no body.
pub(super) fn parse_key(body: &[u8]) -> Result<Option<Cow<'_, str>>, BodyError> {
    if body.is_empty() {
        return Ok(None);
    }
    let fields = Fields::parse(body, KEY_SHAPE)?;
    fields.key.map(|raw| key(raw, KEY_SHAPE)).transpose()
}

fn key<'a>(raw: &'a RawValue, shape: &'static str) -> Result<Cow<'a, str>, BodyError> {
    let is = match raw.get().as_bytes() {
        [b'"', ..] => {
            let decoded = serde_json::from_str::<Text<'a>>(raw.get());
            return decoded
                .map(|text| text.0)
                .map_err(|e| BodyError::Shape { shape, what: format!("\"key\" is not a text of Unicode: {e}") });
        }
        [b'{', ..] => "an object",
        [b'[', ..] => "an array",
        [b't' | b'f', ..] => "a boolean",
        [b'n', ..] => "null",
        _ => "a number",
    };
    Err(BodyError::Shape { shape, what: format!("\"key\" must be a string, but is {is}") })
}

/// A string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_string())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

#[derive(Default)]
struct Fields<'a> {
    key: Option<&'a RawValue>,
    value: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    fn parse(body: &'a [u8], shape: &'static str) -> Result<Self, BodyError> {
        serde_json::from_slice(body).map_err(|error| match error.classify() {
            Category::Data => BodyError::Shape { shape, what: error.to_string() },
            Category::Eof if body.iter().all(u8::is_ascii_whitespace) => {
                BodyError::Shape { shape, what: "it is empty".to_string() }
            }
            Category::Io | Category::Syntax | Category::Eof => BodyError::NotJson(error.to_string()),
        })
    }
}

// By hand, because a derived one takes an array for an object and `null` for a missing field.
impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some(name) = map.next_key::<Text<'de>>()? {
                    let (field, name) = match &*name.0 {
                        "key" => (&mut fields.key, "key"),
                        "value" => (&mut fields.value, "value"),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if field.is_some() {
                        return Err(A::Error::duplicate_field(name));
                    }
                    *field = Some(map.next_value()?);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn puts_that_are_taken() {
        for (body, key, value) in [
            (r#"{"key":"a","value":1}"#, "a", "1"),
            (r#" { "value" : null , "key" : "a" } "#, "a", "null"),
            (
                r#"{"key":"a","value":{"a":1,"a":2,"b":[1.0,1e400,12345678901234567890]}}"#,
                "a",
                r#"{"a":1,"a":2,"b":[1.0,1e400,12345678901234567890]}"#,
            ),
            (r#"{"key":"\u0061\"\u0000","value":"\ud800"}"#, "a\"\0", r#""\ud800""#),
            (r#"{"\u006bey":"🔑","value":[ ],"extra":{"key":"no"}}"#, "🔑", "[ ]"),
            (r#"{"key":"","value":0}"#, "", "0"),
        ] {
            let put = parse_put(body.as_bytes()).expect(body);
            assert_eq!((&*put.key, put.value.get()), (key, value), "{body}");
        }
    }

    #[test]
    fn deep_nesting_is_only_text() {
        let value = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!(r#"{{"key":"a","value":{value}}}"#);
        assert_eq!(parse_put(body.as_bytes()).expect("valid").value.get(), value);
    }

    #[test]
    fn puts_that_are_refused_say_what_is_wrong_and_where() {
        for (body, expected) in [
            ("", "it is empty"),
            (" \n", "it is empty"),
            ("{", "not valid JSON: EOF while parsing an object at line 1 column 1"),
            (r#"{"key":"a" "value":1}"#, "not valid JSON: expected `,` or `}` at line 1 column 12"),
            (r#"{"key":"a","value":1,}"#, "not valid JSON: trailing comma at line 1 column 22"),
            (r#"{"key":"a","value":1}x"#, "not valid JSON: trailing characters at line 1 column 22"),
            (r#"{"key":"a","value":nul}"#, "not valid JSON: expected ident at line 1 column 23"),
            ("key=a&value=1", "not valid JSON: expected value at line 1 column 1"),
            (r#"["a",1]"#, "invalid type: sequence, expected an object at line 1 column 0"),
            ("42", "invalid type: integer `42`, expected an object at line 1 column 2"),
            ("null", "invalid type: null, expected an object"),
            (r#"{"value":1}"#, r#"the field "key" is missing"#),
            (r#"{"key":"a"}"#, r#"the field "value" is missing"#),
            (r#"{"key":1,"value":1}"#, r#""key" must be a string, but is a number"#),
            (r#"{"key":null,"value":1}"#, r#""key" must be a string, but is null"#),
            (r#"{"key":["a"],"value":1}"#, r#""key" must be a string, but is an array"#),
            (r#"{"key":{},"value":1}"#, r#""key" must be a string, but is an object"#),
            (r#"{"key":true,"value":1}"#, r#""key" must be a string, but is a boolean"#),
            (r#"{"key":"\ud800","value":1}"#, r#""key" is not a text of Unicode"#),
            (r#"{"key":"a","key":"b","value":1}"#, "duplicate field `key`"),
            (r#"{"key":"a","value":1,"value":2}"#, "duplicate field `value`"),
        ] {
            let error = parse_put(body.as_bytes()).expect_err(body).to_string();
            assert!(error.contains(expected), "{body}: {error}");
        }
        for body in [&b"{\"key\":\"\xff\",\"value\":1}"[..], b"{\"key\":\"a\",\"value\":\"\xff\"}", b"\xef\xbb\xbf{}"] {
            assert!(parse_put(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn keys_of_gets() {
        assert_eq!(parse_key(b""), Ok(None));
        assert_eq!(parse_key(b"{}"), Ok(None));
        assert_eq!(parse_key(br#"{"key":"a"}"#), Ok(Some("a".into())));
        assert!(parse_key(br#"{"key":1}"#).is_err());
        assert!(parse_key(b"a").is_err());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in prop::collection::vec(any::<u8>(), 0..100), text in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,60}") {
            let _ = (parse_put(&body), parse_key(&body), parse_put(text.as_bytes()));
        }

        #[test]
        fn any_key_round_trips(key in any::<String>()) {
            let body = serde_json::json!({ "key": key, "value": 1 }).to_string();
            prop_assert_eq!(&*parse_put(body.as_bytes()).unwrap().key, key);
        }
    }
}
