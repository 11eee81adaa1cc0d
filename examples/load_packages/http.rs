//! One keep-alive connection to the router, with one request at a time.

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use std::{fmt::Write, time::Duration};
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(30);

/// `host:port` of a URL such as `http://127.0.0.1:5000`.
pub(crate) fn authority(url: &str) -> anyhow::Result<String> {
    let uri: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("http"), Some(host)) => Ok(format!("{host}:{}", uri.port_u16().unwrap_or(80))),
        _ => bail!("{url:?} is not the URL of a router, as in http://127.0.0.1:5000"),
    }
}

/// Everything but letters, digits, `-`, `_`, `.` and `~`, percent-encoded; right in a path and in a query.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(char::from(byte)),
            _ => write!(encoded, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    encoded
}

/// A connection.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Connection {
    /// Connects.
    pub(crate) async fn open(authority: &str) -> anyhow::Result<Self> {
        let cannot = || format!("cannot connect to {authority}; is a cluster running there?");
        let stream = TcpStream::connect(authority).await.with_context(cannot)?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the connection; what goes wrong there is told by the request that it hits.
        tokio::spawn(connection);
        Ok(Connection { sender, authority: authority.to_owned() })
    }

    /// Sends a request and waits for its whole answer.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        json: Option<String>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        if json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::from(json.unwrap_or_default()))?;
        let exchange = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
        };
        tokio::time::timeout(DEADLINE, exchange).await.with_context(|| format!("no answer within {DEADLINE:?}"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding() {
        assert_eq!(percent_encode("libstdc++6=1:2~rc"), "libstdc%2B%2B6%3D1%3A2~rc");
        assert_eq!(percent_encode("a b/ü"), "a%20b%2F%C3%BC");
    }

    #[test]
    fn authorities() {
        for (url, expected) in [
            ("http://127.0.0.1:5000/", Some("127.0.0.1:5000")),
            ("http://localhost", Some("localhost:80")),
            ("kv://x:1", None),
        ] {
            assert_eq!(authority(url).ok().as_deref(), expected, "{url}");
        }
    }
}
