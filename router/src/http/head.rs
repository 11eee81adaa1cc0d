//! How large the head of a request may be.
//!
//! | a request with | is answered |
//! |---|---|
//! | a target of more than [`MAX_BYTES`] | 414 `uri_too_long` |
//! | a head of more than [`MAX_BYTES`], or more than [`MAX_HEADERS`] headers | 431 `head_too_large` |
//! | more than [`PARSER_MAX_BYTES`] or [`PARSER_MAX_HEADERS`] | 431 by hyper, without a body |
//!
//! Here a head is its target and the names and values of its headers; hyper also counts what stands between them. hyper
//! answers in its own way what it cannot read at all, so that it is given room to read what is refused here.

use super::error::ApiError;
use hyper::{Request, StatusCode};

/// Longest head, in bytes: a key of 4 KiB fits with every byte percent-encoded.
const MAX_BYTES: usize = 16 * 1024;
/// Most headers.
const MAX_HEADERS: usize = 100;
/// Longest head that hyper reads, in bytes.
pub(super) const PARSER_MAX_BYTES: usize = 32 * 1024;
/// Most headers that hyper reads.
pub(super) const PARSER_MAX_HEADERS: usize = 1000;

/// Refuses a head that is too large.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), ApiError> {
    let uri = request.uri();
    let authority = uri.authority().map_or(0, |a| a.as_str().len());
    let target = authority + uri.path_and_query().map_or(0, |p| p.as_str().len());
    if target > MAX_BYTES {
        let detail = format!("the address has more than {MAX_BYTES} bytes");
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, "uri_too_long", detail).closing());
    }
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if headers.len() > MAX_HEADERS || target + bytes > MAX_BYTES {
        let detail = format!("the head has more than {MAX_HEADERS} headers or more than {MAX_BYTES} bytes");
        return Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail).closing());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_at_and_past_their_limits() {
        for (target, headers, value, status) in [
            (1, 0, 0, None),
            (1, 100, 1, None),
            (1, 101, 1, Some(431)),
            (MAX_BYTES, 0, 0, None),
            (MAX_BYTES + 1, 0, 0, Some(414)),
            (MAX_BYTES + 1, 101, 0, Some(414)),
            (1, 1, MAX_BYTES - 2, None),
            (1, 1, MAX_BYTES - 1, Some(431)),
            (MAX_BYTES - 1000, 1, 999, None),
            (MAX_BYTES - 1000, 1, 1000, Some(431)),
        ] {
            let mut request = Request::builder().uri(format!("/{}", "k".repeat(target - 1)));
            for _ in 0..headers {
                request = request.header("x", "v".repeat(value));
            }
            let refused = check(&request.body(()).expect("a request")).err().map(|e| e.status.as_u16());
            assert_eq!(refused, status, "{target} {headers} {value}");
        }
    }
}
