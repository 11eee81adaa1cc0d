//! `/v1/kv/KEY`: values as raw bytes, with content type, ETag, conditions and `?ttl=SECONDS`; errors as RFC 9457 has them.
//!
//! The key is all of the path behind `/v1/kv/`, percent-decoded: any bytes, slashes included. A `+` is a plus.

use super::{
    Inner,
    conditions::{self, Read, WriteCondition, etag},
    error::ApiError,
    exchange::{Body, Reply, insert_origin, reply},
    finish, query, value,
};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue},
};
use kv_client::{PutOptions, Written};
use kv_proto::{ids::Version, request::Condition, response::Answered};

/// A stored page may be looked at, but is a stranger to this API: its scripts must not run with what is allowed here.
const NO_SCRIPTS: HeaderValue = HeaderValue::from_static("sandbox; default-src 'none'");

/// Seconds that the value lives yet.
const EXPIRES_IN: HeaderName = HeaderName::from_static("kv-expires-in");

impl Inner {
    pub(super) async fn value(&self, key: &str, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let key = query::percent_decode(key)?.into_owned();
        self.limits.check_key(&key)?;
        match *request.method() {
            Method::PUT => self.put_value(key, request).await,
            Method::DELETE => self.delete_value(key, request.headers()).await,
            _ => self.get_value(&key, request.headers()).await,
        }
    }

    async fn get_value(&self, key: &[u8], headers: &HeaderMap) -> Result<Reply, ApiError> {
        let entry = self.client.get(key).await?;
        let current = entry.as_ref().map(|e| e.version);
        let read = conditions::check_read(headers, current)?;
        let entry = match (read, entry) {
            (Read::Failed, _) => return Err(ApiError::condition_failed(current)),
            (_, None) => return Err(ApiError::not_found()),
            (_, Some(entry)) => entry,
        };
        let mut reply = match read {
            Read::NotModified => empty(StatusCode::NOT_MODIFIED),
            _ => {
                let content_type =
                    if entry.content_type.is_empty() { value::BYTES } else { entry.content_type.as_str() };
                let held = self.budget.hold(entry.value.len())?;
                reply(StatusCode::OK, content_type, Body::from(entry.value).holding(held))
            }
        };
        insert_version(reply.headers_mut(), entry.version, entry.at);
        if let Some(left) = entry.expires_in {
            let seconds = HeaderValue::try_from(format!("{:.3}", left.as_secs_f64()));
            reply.headers_mut().insert(EXPIRES_IN, seconds.expect("digits are a header value"));
        }
        reply.headers_mut().insert(CONTENT_SECURITY_POLICY, NO_SCRIPTS);
        Ok(reply)
    }

    async fn put_value(&self, key: Vec<u8>, request: Request<Incoming>) -> Result<Reply, ApiError> {
        let condition = write_condition(request.headers())?;
        let ttl = query::ttl_of_query(request.uri().query().unwrap_or_default())?;
        let content_type = match request.headers().get(CONTENT_TYPE).map(HeaderValue::to_str) {
            None | Some(Ok("")) => value::BYTES.to_string(),
            Some(Ok(content_type)) => content_type.to_string(),
            Some(Err(_)) => {
                let detail = "the Content-Type has characters other than visible ASCII";
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_content_type", detail).closing());
            }
        };
        self.limits.check_value(&content_type, b"")?;
        let (body, held) = self.read_body(request, self.limits.max_value_bytes as usize).await?;
        let client = self.client.clone();
        let written = finish(held, async move {
            client.put_with(&key, &body, PutOptions { content_type: &content_type, condition, ttl }).await
        });
        Ok(written_reply(written.await?))
    }

    async fn delete_value(&self, key: Vec<u8>, headers: &HeaderMap) -> Result<Reply, ApiError> {
        let condition = write_condition(headers)?;
        if condition == Condition::Absent {
            let detail = "If-None-Match: * of a DELETE would delete only what is not there";
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_condition", detail));
        }
        let client = self.client.clone();
        let held = self.budget.hold(key.len())?;
        let deleted = finish(held, async move { client.delete_with(&key, condition).await }).await?;
        deleted.map(written_reply).ok_or_else(ApiError::not_found)
    }
}

fn write_condition(headers: &HeaderMap) -> Result<Condition, ApiError> {
    match conditions::of_write(headers)? {
        WriteCondition::Decide(condition) => Ok(condition),
        WriteCondition::Never => Err(ApiError::condition_failed(None)),
    }
}

fn written_reply(written: Written) -> Reply {
    let mut reply = empty(StatusCode::NO_CONTENT);
    insert_version(reply.headers_mut(), written.version, written.at);
    reply
}

fn empty(status: StatusCode) -> Reply {
    let mut reply = Reply::new(Body::default());
    *reply.status_mut() = status;
    reply
}

fn insert_version(headers: &mut HeaderMap, version: Version, at: Answered) {
    if let Ok(etag) = HeaderValue::try_from(etag(version)) {
        headers.insert(ETAG, etag);
    }
    insert_origin(headers, version, at);
}
