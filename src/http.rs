//! A small HTTP client for the commands that talk to a router.
//!
//! Every request has one deadline for everything, and an answer has a bound; it lacks redirects, TLS and proxies.

use anyhow::{Context, anyhow, bail};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    header::{AsHeaderName, CONTENT_TYPE, HeaderMap, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, Error, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{fmt::Write, time::Duration};

/// How long a request may take, its connection and its answer included.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest answer that is read, in bytes; the topology of a cluster with most partitions has some megabytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Where the router of a command is.
#[derive(clap::Args, Debug, Clone)]
pub(crate) struct ClusterOptions {
    /// The router of the cluster
    #[arg(long = "cluster", env = "KV_CLUSTER", value_name = "URL", default_value = "http://127.0.0.1:5000")]
    url: String,
}

/// A router's HTTP API.
pub(crate) struct Api {
    base: String,
    /// What to do when nobody listens there, as the end of a sentence.
    cure: &'static str,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What a router answered.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The problem document of a failed request (RFC 9457).
#[derive(serde::Deserialize)]
struct Problem {
    detail: String,
    code: Option<String>,
    outcome: Option<String>,
}

impl Answer {
    /// A header, if it is there and is text.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn problem(&self) -> Option<Problem> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The code of the problem that it tells.
    pub(crate) fn problem_code(&self) -> Option<String> {
        self.problem()?.code
    }

    /// What it says of a request that failed, as a sentence.
    pub(crate) fn failure(&self) -> anyhow::Error {
        let Some(problem) = self.problem() else {
            return anyhow!("the router answered {}: {}", self.status, String::from_utf8_lossy(&self.body).trim());
        };
        let tags: Vec<_> =
            [Some(self.status.to_string()), problem.code, problem.outcome].into_iter().flatten().collect();
        anyhow!("{} ({})", problem.detail, tags.join(", "))
    }
}

impl Api {
    /// The API that a command was told to use.
    pub(crate) fn new(options: &ClusterOptions) -> anyhow::Result<Self> {
        let cure = "; start a cluster with `kv local`, or say where one is by --cluster URL";
        Ok(Api { cure, ..Self::at(&options.url)? })
    }

    /// The API at `url`; does no I/O.
    pub(crate) fn at(url: &str) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/');
        let uri: Uri = base.parse().with_context(|| format!("{url:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            bail!("{url:?} is not the URL of a router: http://HOST:PORT, as in http://127.0.0.1:5000");
        }
        Ok(Api { base: base.to_owned(), cure: "", client: Client::builder(TokioExecutor::new()).build_http() })
    }

    /// Asks for `path`, which is percent-encoded where it must be.
    ///
    /// # Errors
    /// When there is no whole answer in time; whatever the status of an answer is, it is no error here.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(text) = content_type {
            let value = HeaderValue::from_str(text).with_context(|| format!("{text:?} is not a content type"))?;
            request = request.header(CONTENT_TYPE, value);
        }
        let request = request.body(Full::new(body.into()))?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|e| self.reason(e))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|e| anyhow!("its answer broke off: {e}"))?.to_bytes();
            anyhow::Ok(Answer { status, headers, body })
        };
        match tokio::time::timeout(DEADLINE, exchange).await {
            Ok(answer) => answer.with_context(|| format!("no answer from the router at {}", self.base)),
            Err(_) => bail!("no answer from the router at {} within {} s", self.base, DEADLINE.as_secs()),
        }
    }

    /// The innermost reason, which is what a person can act on: "Connection refused".
    fn reason(&self, error: Error) -> anyhow::Error {
        let cure = if error.is_connect() { self.cure } else { "" };
        anyhow!("{}{cure}", anyhow::Error::new(error).root_cause())
    }
}

/// The path of a key, with everything but letters, digits, `-`, `_`, `.` and `~` percent-encoded.
pub(crate) fn key_path(key: &[u8]) -> String {
    let mut path = String::from("/v1/kv/");
    for byte in key {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => path.push(char::from(*byte)),
            _ => write!(path, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_paths() {
        for (key, path) in [
            ("sample_key", "/v1/kv/sample_key"),
            ("a b/c?d&e%", "/v1/kv/a%20b%2Fc%3Fd%26e%25"),
            ("ü+", "/v1/kv/%C3%BC%2B"),
            ("..", "/v1/kv/.."),
        ] {
            assert_eq!(key_path(key.as_bytes()), path);
        }
    }

    #[test]
    fn urls_of_routers() {
        for good in ["http://127.0.0.1:5000", "http://localhost:5000/", "http://[::1]:5000"] {
            assert!(Api::at(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:5000", "https://127.0.0.1:5000", "kv://127.0.0.1:5001", "http://", "not a url"] {
            assert!(Api::at(bad).is_err(), "{bad}");
        }
    }
}
