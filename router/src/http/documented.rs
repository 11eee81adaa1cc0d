//! `/put`, `/get` and `/delete`: the API as its users know it.
//!
//! | request | answer |
//! |---|---|
//! | `POST\|PUT /put` with `{"key": "…", "value": …}` | 200 `{"status":"Successful"}` |
//! | `GET\|POST /get?key=…` | 200 `{"key":…,"value":…}`, 404 `{"status":"Key not found"}` |
//! | `DELETE\|GET /delete?key=…` | 200 `{"status":"Delete successful"}`, 404 `{"status":"Key not found"}` |

use super::{
    Inner,
    error::ApiError,
    exchange::{Body, Budget, Reply, insert_origin, reply},
    finish, json_body, json_limit, query, value,
};
use bytes::Bytes;
use hyper::{Method, Request, StatusCode, body::Incoming};
use kv_client::PutOptions;
use std::borrow::Cow;

/// Longest body of a `POST /get`, in bytes: a key with every byte written as `\u00xx`, and some room.
const MAX_KEY_BODY_BYTES: usize = 32 * 1024;

impl Inner {
    pub(super) async fn put(&self, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let (body, held) = self.read_body(request, json_limit(self.limits)).await?;
        let put = json_body::parse_put(&body)?;
        self.limits.check_key(put.key.as_bytes())?;
        let (stored, content_type) = value::to_stored(put.value);
        self.limits.check_value(content_type, &stored)?;
        let key = put.key.into_owned();
        let stored = match stored {
            Cow::Borrowed(part) => body.slice_ref(part),
            Cow::Owned(text) => Bytes::from(text),
        };
        let client = self.client.clone();
        let written = finish(held, async move {
            client.put_with(key.as_bytes(), &stored, PutOptions { content_type, ..PutOptions::default() }).await
        });
        let written = written.await?;
        let mut reply = status(StatusCode::OK, r#"{"status":"Successful"}"#);
        insert_origin(reply.headers_mut(), written.version, written.at);
        Ok(reply)
    }

    pub(super) async fn get(&self, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let key = match query::key_of_query(request.uri().query().unwrap_or_default())? {
            Some(key) => key,
            None if request.method() == Method::POST => {
                let (body, _held) = self.read_body(request, MAX_KEY_BODY_BYTES).await?;
                let key = json_body::parse_key(&body)?;
                key.ok_or_else(|| ApiError::key_missing(KEY_OF_POST))?.into_owned()
            }
            None => return Err(ApiError::key_missing(KEY_OF_QUERY)),
        };
        self.limits.check_key(key.as_bytes())?;
        let Some(entry) = self.client.get(key.as_bytes()).await? else { return Ok(key_not_found()) };
        let body = value_body(&self.budget, &key, &entry.content_type, &entry.value)?;
        let mut reply = reply(StatusCode::OK, value::JSON, body);
        insert_origin(reply.headers_mut(), entry.version, entry.at);
        Ok(reply)
    }

    pub(super) async fn delete(&self, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let key = query::key_of_query(request.uri().query().unwrap_or_default())?;
        let key = key.ok_or_else(|| ApiError::key_missing(KEY_OF_QUERY))?;
        self.limits.check_key(key.as_bytes())?;
        let client = self.client.clone();
        let held = self.budget.hold(key.len())?;
        let deleted = finish(held, async move { client.delete(key.as_bytes()).await }).await?;
        let Some(written) = deleted else { return Ok(key_not_found()) };
        let mut reply = status(StatusCode::OK, r#"{"status":"Delete successful"}"#);
        insert_origin(reply.headers_mut(), written.version, written.at);
        Ok(reply)
    }
}

/// The answer with a value. It may be several times as long as the value (control characters are six characters in
/// JSON), which is known once it is there: from then on it counts with all that it takes.
fn value_body(budget: &Budget, key: &str, content_type: &str, value: &[u8]) -> Result<Body, ApiError> {
    let mut held = budget.hold(value.len())?;
    let answer = value::to_answer(key, content_type, value);
    budget.grow(&mut held, answer.capacity())?;
    Ok(Body::from(answer).holding(held))
}

const KEY_OF_QUERY: &str = "name it in the query, as in ?key=name";
const KEY_OF_POST: &str = r#"name it in the query, as in ?key=name, or in the body, as in {"key": "name"}"#;

fn key_not_found() -> Reply {
    status(StatusCode::NOT_FOUND, r#"{"status":"Key not found"}"#)
}

fn status(status: StatusCode, body: &'static str) -> Reply {
    reply(status, value::JSON, Body::from(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_with_all_that_it_takes() {
        let value = [1; 4096];
        let small = Budget::new(6 * value.len());
        let error = value_body(&small, "k", value::TEXT, &value).expect_err("its characters alone take all");
        assert_eq!(error.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(small.hold(6 * value.len()).is_ok(), "given back");
        let large = Budget::new(16 * value.len());
        let body = value_body(&large, "k", value::TEXT, &value).expect("room");
        assert!(large.hold(10 * value.len()).is_err(), "6 of 16 are held at least");
        drop(body);
        assert!(large.hold(16 * value.len()).is_ok());
    }
}
