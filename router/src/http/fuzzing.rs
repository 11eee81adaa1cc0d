//! Doors for the fuzz targets (`cfg(fuzzing)` only): what reads text from strangers, and what must hold of it.

use super::{json_body, query as address, value};

/// The query of an address, as of `/get?key=…`.
pub fn query(text: &str) {
    if let Ok(Some(key)) = address::key_of_query(text) {
        assert!(key.len() <= text.len(), "a key is never longer than what it was written as");
    }
    let _ = address::percent_decode(text);
}

/// The body of a `/put`: what is accepted comes back as a JSON answer, and not a string comes back as it was.
pub fn put_body(body: &[u8]) {
    let _ = json_body::parse_key(body);
    let Ok(put) = json_body::parse_put(body) else { return };
    let (stored, content_type) = value::to_stored(put.value);
    let answer = value::to_answer(&put.key, content_type, &stored);
    let answer: &serde_json::value::RawValue = serde_json::from_slice(&answer).expect("an answer is JSON");
    if !put.value.get().starts_with('"') {
        assert!(answer.get().ends_with(&format!(",\"value\":{}}}", put.value.get())), "{answer}");
    }
}
