//! Keeps pages of other sites from ruling the cluster: the API listens where a browser on the same machine reaches it, and
//! a page that its user looks at could send requests there.
//!
//! A browser says where a request comes from: in `Sec-Fetch-Site`, and for everything but plain reads in `Origin`. Programs
//! like curl and `kv` say neither. A page of this API itself is let through, but only under an address that no other
//! site can take for itself: a name could be made to mean this machine by whoever owns it.

use super::error::ApiError;
use hyper::{
    HeaderMap, StatusCode,
    header::{HOST, HeaderName, HeaderValue, ORIGIN},
};
use std::net::IpAddr;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what a page of another site sends.
pub(super) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name: &HeaderName| headers.get(name).map(HeaderValue::to_str);
    let (site, origin) = (text(&FETCH_SITE), text(&ORIGIN));
    if site.is_none() && origin.is_none() {
        return Ok(());
    }
    let host = text(&HOST).and_then(Result::ok).filter(|host| is_own(host));
    let own_site = matches!(site, None | Some(Ok("same-origin" | "none")));
    let own_origin = match (origin, host) {
        (None, _) => true,
        (Some(Ok(origin)), Some(host)) => {
            origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) == Some(host)
        }
        _ => false,
    };
    if own_site && own_origin && host.is_some() {
        return Ok(());
    }
    let detail = "the request comes from a browser, and not from a page of this address: send it by `kv admin` or curl, or \
                  from a page at http://127.0.0.1 or another IP address of this router";
    Err(ApiError::new(StatusCode::FORBIDDEN, "cross_origin", detail))
}

/// Whether the host is this machine's by its own right: an IP address, or `localhost`.
fn is_own(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port),
        _ => (host, ""),
    };
    let ip = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    port.bytes().all(|b| b.is_ascii_digit()) && (name == "localhost" || ip.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_programs_and_own_pages_are_let_through() {
        let (host, origin, site) = ("host", "origin", "sec-fetch-site");
        for (headers, allowed) in [
            (&[(host, "kv.example:5000")][..], true),
            (&[], true),
            (&[(host, "127.0.0.1:5000"), (origin, "http://127.0.0.1:5000"), (site, "same-origin")], true),
            (&[(host, "127.0.0.1:5000"), (origin, "http://127.0.0.1:5000")], true),
            (&[(host, "[::1]:5000"), (origin, "http://[::1]:5000")], true),
            (&[(host, "[::1]"), (origin, "http://[::1]")], true),
            (&[(host, "localhost:5000"), (origin, "https://localhost:5000")], true),
            (&[(host, "127.0.0.1:5000"), (site, "none")], true),
            (&[(host, "127.0.0.1:5000"), (origin, "http://127.0.0.1:5001")], false),
            (&[(host, "127.0.0.1:5000"), (origin, "http://localhost:5000")], false),
            (&[(host, "127.0.0.1:5000"), (origin, "http://evil.example"), (site, "cross-site")], false),
            (&[(host, "127.0.0.1:5000"), (site, "cross-site")], false),
            (&[(host, "127.0.0.1:5000"), (site, "same-site")], false),
            (&[(host, "127.0.0.1:5000"), (origin, "null")], false),
            // A name that was made to mean this machine, by who has the page.
            (&[(host, "evil.example:5000"), (origin, "http://evil.example:5000"), (site, "same-origin")], false),
            (&[(host, "localhost.evil.example"), (origin, "http://localhost.evil.example")], false),
            (&[(origin, "http://127.0.0.1:5000")], false),
        ] {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let checked = check(&headers);
            assert_eq!(checked.is_ok(), allowed, "{headers:?}");
            assert!(checked.err().is_none_or(|e| (e.status, e.code) == (StatusCode::FORBIDDEN, "cross_origin")));
        }
    }
}
