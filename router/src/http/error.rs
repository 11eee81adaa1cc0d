//! What a request that failed is answered: status, code, outcome, and a sentence.
//!
//! | what happened | status | outcome |
//! |---|---|---|
//! | the request cannot be carried out as it is | 400, 404, 405, 408, 413, 414, 415, 431 | `not_applied` |
//! | its condition does not hold | 412 | `not_applied` |
//! | an administrator's wish does not fit what is there; comes from a page of another site | 409; 403 | `not_applied` |
//! | more is asked than can be held | 429 with `Retry-After` | `not_applied` |
//! | a node has no room for it | 507 | `not_applied` |
//! | nobody can serve it now | 503 with `Retry-After` | `not_applied` |
//! | the cluster broke its own rules | 502 | as it is |
//! | a write was proposed, and its answer was lost or late | 504 | `unknown` |
//! | the router itself failed in the middle of a write | 500 | `unknown` |
//!
//! The documented API answers with a string `status` beside `code` and `outcome`, everything else with
//! `application/problem+json` (RFC 9457).

use super::{
    conditions::{ConditionError, etag},
    exchange::{Body, Reply},
    json_body::BodyError,
    query::AddressError,
};
use hyper::{
    Method, StatusCode,
    header::{ALLOW, CONNECTION, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER},
};
use kv_client::Error as ClientError;
use kv_proto::{
    error_code::{ErrorCode, Outcome, WireError},
    ids::Version,
};
use serde::Serialize;

/// An error as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) outcome: Outcome,
    pub(super) retryable: bool,
    pub(super) detail: String,
    header: Option<(HeaderName, HeaderValue)>,
    /// Whether the rest of the request is not read, so that the connection cannot be used again.
    close: bool,
}

impl ApiError {
    /// An error of the request itself: nothing was applied, and the same again fails again.
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        ApiError { status, code, outcome: Outcome::NotApplied, retryable: false, detail, header: None, close: false }
    }

    /// The connection closes after the answer.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    fn later(mut self) -> Self {
        self.retryable = true;
        self.header = Some((RETRY_AFTER, HeaderValue::from_static("1")));
        self
    }

    pub(super) fn unknown_route(path: &str) -> Self {
        let shown: String = path.chars().take(100).collect();
        let detail = format!("there is nothing at {shown}: GET / lists the addresses");
        ApiError::new(StatusCode::NOT_FOUND, "unknown_route", detail)
    }

    pub(super) fn wrong_method(method: &Method, allow: &'static str) -> Self {
        let detail = format!("{method} is not allowed here, only {allow}");
        let mut error = ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "wrong_method", detail);
        error.header = Some((ALLOW, HeaderValue::from_static(allow)));
        error
    }

    pub(super) fn key_missing(how: &str) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "key_missing", format!("the key is missing: {how}"))
    }

    pub(super) fn not_found() -> Self {
        ApiError::new(StatusCode::NOT_FOUND, "key_not_found", "the key has no value")
    }

    pub(super) fn body_too_large(limit: usize) -> Self {
        let detail = format!("the body has more than {limit} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail).closing()
    }

    pub(super) fn overloaded(detail: &str) -> Self {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::Overloaded.as_str(), detail).later()
    }

    pub(super) fn not_ready(detail: impl Into<String>) -> Self {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::NotReady.as_str(), detail).later()
    }

    pub(super) fn condition_failed(current: Option<Version>) -> Self {
        let detail = match current {
            Some(version) => format!("the condition does not hold: the value has ETag {}", etag(version)),
            None => "the condition does not hold".to_string(),
        };
        let mut error = ApiError::new(StatusCode::PRECONDITION_FAILED, "condition_failed", detail);
        error.header = current.and_then(|v| Some((ETAG, HeaderValue::from_str(&etag(v)).ok()?)));
        error
    }

    /// A change was begun and did not come to its end, for a fault of the router.
    pub(super) fn interrupted(detail: impl Into<String>) -> Self {
        let error = ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail);
        ApiError { outcome: Outcome::Unknown, ..error }
    }

    /// The error as the documented API answers it.
    pub(super) fn documented(&self) -> Reply {
        #[derive(Serialize)]
        struct Documented<'a> {
            status: &'a str,
            code: &'a str,
            outcome: String,
        }
        let body = Documented { status: &self.detail, code: self.code, outcome: self.outcome.to_string() };
        self.reply("application/json", serde_json::to_vec(&body).expect("texts are JSON"))
    }

    /// The error as RFC 9457 has it.
    pub(super) fn problem(&self) -> Reply {
        #[derive(Serialize)]
        struct Problem<'a> {
            #[serde(rename = "type")]
            kind: &'static str,
            title: &'a str,
            status: u16,
            detail: &'a str,
            code: &'a str,
            outcome: String,
            retryable: bool,
        }
        let body = Problem {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or_default(),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            outcome: self.outcome.to_string(),
            retryable: self.retryable,
        };
        self.reply("application/problem+json", serde_json::to_vec(&body).expect("texts and numbers are JSON"))
    }

    fn reply(&self, content_type: &'static str, body: Vec<u8>) -> Reply {
        let mut reply = Reply::new(Body::from(body));
        *reply.status_mut() = self.status;
        let headers = reply.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if let Some((name, value)) = &self.header {
            headers.insert(name, value.clone());
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }
}

impl From<ClientError> for ApiError {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::ConditionFailed { current, .. } => return ApiError::condition_failed(*current),
            ClientError::Rejected(wire) if is_of_the_request(wire.code) => return ApiError::from((**wire).clone()),
            _ => {}
        }
        let code = error.error_code();
        let (outcome, retryable) = (error.outcome(), error.is_retryable());
        let status = match (outcome, code) {
            (Outcome::Unknown, _) => StatusCode::GATEWAY_TIMEOUT,
            (Outcome::NotApplied, Some(ErrorCode::Overloaded | ErrorCode::TooManyConnections)) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            (Outcome::NotApplied, Some(ErrorCode::MemoryFull | ErrorCode::DiskFull)) => {
                StatusCode::INSUFFICIENT_STORAGE
            }
            (Outcome::NotApplied, Some(ErrorCode::NotInSync)) => StatusCode::CONFLICT,
            (Outcome::NotApplied, None) if matches!(error, ClientError::Busy { .. }) => StatusCode::TOO_MANY_REQUESTS,
            (Outcome::NotApplied, _) if retryable => StatusCode::SERVICE_UNAVAILABLE,
            (Outcome::NotApplied, _) => StatusCode::BAD_GATEWAY,
        };
        let answered = ApiError { outcome, ..ApiError::new(status, error.code(), error.to_string()) };
        if retryable { answered.later() } else { answered }
    }
}

/// Whether the caller of the API made the error, and not the router or the nodes.
fn is_of_the_request(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::KeyEmpty | ErrorCode::KeyTooLarge | ErrorCode::ValueTooLarge | ErrorCode::ContentTypeTooLarge
    )
}

/// For what a limit refuses.
impl From<WireError> for ApiError {
    fn from(error: WireError) -> Self {
        let status = match error.code {
            ErrorCode::ValueTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        ApiError::new(status, error.code.as_str(), error.message)
    }
}

impl From<AddressError> for ApiError {
    fn from(error: AddressError) -> Self {
        let code = match error {
            AddressError::BadEscape(_) => "bad_percent_encoding",
            AddressError::NotUtf8(_) => "key_not_utf8",
            AddressError::Repeated(_) => "key_repeated",
            AddressError::BadTtl(_) => "bad_ttl",
            AddressError::BadVersion(_) => "bad_version",
        };
        ApiError::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl From<BodyError> for ApiError {
    fn from(error: BodyError) -> Self {
        let code = match error {
            BodyError::NotJson(_) => "body_not_json",
            BodyError::Shape { .. } => "body_wrong_shape",
        };
        ApiError::new(StatusCode::BAD_REQUEST, code, error.to_string())
    }
}

impl From<ConditionError> for ApiError {
    fn from(error: ConditionError) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_condition", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::{NodeId, PartitionId};

    fn wire(code: ErrorCode) -> ClientError {
        WireError::new(code, "why").into()
    }

    #[test]
    fn statuses_say_what_became_of_the_request() {
        let node = || "n".to_string();
        let id = NodeId::new("n").expect("a node id");
        let (unknown, not_applied) = (Outcome::Unknown, Outcome::NotApplied);
        for (error, status, code, retry_after) in [
            (wire(ErrorCode::KeyEmpty), 400, "key_empty", false),
            (wire(ErrorCode::KeyTooLarge), 400, "key_too_large", false),
            (wire(ErrorCode::ContentTypeTooLarge), 400, "content_type_too_large", false),
            (wire(ErrorCode::ValueTooLarge), 413, "value_too_large", false),
            (wire(ErrorCode::Overloaded), 429, "overloaded", true),
            (wire(ErrorCode::TooManyConnections), 429, "too_many_connections", true),
            (ClientError::Busy { node: id }, 429, "client_busy", true),
            (wire(ErrorCode::NotReady), 503, "not_ready", true),
            (wire(ErrorCode::NotLeader), 503, "not_leader", true),
            (wire(ErrorCode::FollowerUnreachable), 503, "follower_unreachable", true),
            (wire(ErrorCode::ShuttingDown), 503, "shutting_down", true),
            (wire(ErrorCode::Expired), 503, "expired", true),
            (ClientError::NoMap { cause: node() }, 503, "no_map", true),
            (ClientError::NoLeader { partition: PartitionId(1) }, 503, "no_leader", true),
            (ClientError::Unreachable { node: node(), cause: node() }, 503, "unreachable", true),
            (ClientError::DeadlineExceeded { node: node(), outcome: not_applied }, 503, "deadline_exceeded", true),
            (ClientError::DeadlineExceeded { node: node(), outcome: unknown }, 504, "deadline_exceeded", false),
            (
                ClientError::ConnectionLost { node: node(), cause: node(), outcome: unknown },
                504,
                "connection_lost",
                false,
            ),
            (wire(ErrorCode::OutcomeUnknown), 504, "outcome_unknown", false),
            (wire(ErrorCode::MemoryFull), 507, "memory_full", false),
            (wire(ErrorCode::DiskFull), 507, "disk_full", false),
            (wire(ErrorCode::NotInSync), 409, "not_in_sync", false),
            (wire(ErrorCode::Malformed), 502, "malformed", false),
            (ClientError::UnknownNode { node: id }, 502, "unknown_node", false),
        ] {
            let outcome = error.outcome();
            let answered = ApiError::from(error);
            let reply = answered.problem();
            let header = reply.headers().contains_key(RETRY_AFTER);
            assert_eq!((reply.status().as_u16(), answered.code, header), (status, code, retry_after));
            assert_eq!(answered.outcome, outcome, "{code}");
            assert_eq!(status == 504, outcome == Outcome::Unknown, "504 is for what is unknown, and only for that");
        }
    }

    #[test]
    fn every_code_of_the_wire_has_a_status_that_fits_its_outcome() {
        for code in ErrorCode::ALL {
            let answered = ApiError::from(wire(*code));
            assert!(answered.status.is_client_error() || answered.status.is_server_error());
            assert_eq!((answered.code, answered.outcome), (code.as_str(), code.outcome()));
        }
    }

    #[test]
    fn a_failed_condition_tells_the_version_that_is_there() {
        let version: Version = "0-17".parse().expect("a version");
        let reply = ApiError::condition_failed(Some(version)).problem();
        assert_eq!(reply.status(), StatusCode::PRECONDITION_FAILED);
        assert_eq!(reply.headers()[ETAG], "\"0-17\"");
        assert!(!ApiError::condition_failed(None).problem().headers().contains_key(ETAG));
    }
}
