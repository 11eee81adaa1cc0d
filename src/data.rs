//! `kv get`, `kv put` and `kv delete`: the store from a shell, over the router's `/v1/kv/{key}`.
//!
//! Values are bytes: taken from an argument or stdin as they are, written to stdout as they are.

use crate::{
    http::{Answer, Api, ClusterOptions, key_path},
    output,
};
use anyhow::{Context, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper::{Method, StatusCode, body::Bytes, header::CONTENT_TYPE};
use serde_json::json;
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read},
    os::unix::ffi::{OsStrExt, OsStringExt},
    process::ExitCode,
    time::Duration,
};

/// Exit code that says that the key has no value.
const EXIT_MISSING: u8 = 1;

/// What to read.
#[derive(clap::Args, Debug)]
pub(crate) struct GetOptions {
    /// The key
    key: OsString,
    /// Print key, value and version as a line of JSON; a value that is no UTF-8 in base64
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What to write.
#[derive(clap::Args, Debug)]
pub(crate) struct PutOptions {
    /// The key
    key: OsString,
    /// The value; read from stdin if it is absent or `-`
    #[arg(allow_hyphen_values = true)]
    value: Option<OsString>,
    /// Kept with the value and told to who reads it, as in application/json
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// How long the value lives, as in 30s, 1h 30m or 500ms; for ever without it
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
    /// Print key and version as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What to remove.
#[derive(clap::Args, Debug)]
pub(crate) struct DeleteOptions {
    /// The key
    key: OsString,
    /// Print key and version as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterOptions,
}

pub(crate) async fn get(options: GetOptions) -> anyhow::Result<ExitCode> {
    let path = path(&options.key)?;
    let answer = Api::new(&options.cluster)?.send(Method::GET, &path, None, Bytes::new()).await?;
    if options.json || !succeeded(&answer)? {
        return told(&options.key, &answer, options.json);
    }
    // Whoever reads only the beginning has what it wants.
    output::bytes(&answer.body).context("cannot write the value to stdout")?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn put(options: PutOptions) -> anyhow::Result<ExitCode> {
    let value = match options.value {
        Some(value) if value != "-" => value.into_vec(),
        _ => {
            let mut value = Vec::new();
            io::stdin().lock().read_to_end(&mut value).context("cannot read the value from stdin")?;
            value
        }
    };
    let content_type = options.content_type.as_deref();
    let path = path(&options.key)? + &options.ttl.map(ttl_query).unwrap_or_default();
    let answer = Api::new(&options.cluster)?.send(Method::PUT, &path, content_type, value).await?;
    told(&options.key, &answer, options.json)
}

pub(crate) async fn delete(options: DeleteOptions) -> anyhow::Result<ExitCode> {
    let path = path(&options.key)?;
    let answer = Api::new(&options.cluster)?.send(Method::DELETE, &path, None, Bytes::new()).await?;
    told(&options.key, &answer, options.json)
}

fn path(key: &OsStr) -> anyhow::Result<String> {
    if key.is_empty() {
        bail!("the key is empty; a key has 1 to 4096 bytes");
    }
    Ok(key_path(key.as_bytes()))
}

/// A life as the API takes it, in seconds.
fn ttl_query(ttl: Duration) -> String {
    format!("?ttl={}.{:09}", ttl.as_secs(), ttl.subsec_nanos())
}

/// Tells how it went, as JSON on stdout or, of a missing key, in a sentence on stderr.
fn told(key: &OsStr, answer: &Answer, json: bool) -> anyhow::Result<ExitCode> {
    let found = succeeded(answer)?;
    if json {
        output::line(as_json(key, answer, found));
    } else if !found {
        eprintln!("kv: the key {} has no value", key.display());
    }
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::from(EXIT_MISSING) })
}

/// Key, value and what the headers say, as one line of JSON.
fn as_json(key: &OsStr, answer: &Answer, found: bool) -> String {
    let mut object = json!({ "key": key.to_string_lossy(), "found": found });
    for (field, header) in [("version", "kv-version"), ("content_type", CONTENT_TYPE.as_str())] {
        if let Some(text) = answer.header(header).filter(|_| found) {
            object[field] = text.into();
        }
    }
    if answer.status == StatusCode::OK {
        match std::str::from_utf8(&answer.body) {
            Ok(text) => object["value"] = text.into(),
            Err(_) => {
                object["value"] = STANDARD.encode(&answer.body).into();
                object["encoding"] = "base64".into();
            }
        }
    }
    object.to_string()
}

/// Whether the request was carried out; false says that the key has no value. A 404 that does not say so is not from
/// a router.
fn succeeded(answer: &Answer) -> anyhow::Result<bool> {
    if answer.status.is_success() {
        return Ok(true);
    }
    if answer.status == StatusCode::NOT_FOUND && answer.problem_code().as_deref() == Some("key_not_found") {
        return Ok(false);
    }
    Err(answer.failure())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderMap, HeaderName, HeaderValue};

    fn answer(status: StatusCode, headers: &[(&'static str, &'static str)], body: &[u8]) -> Answer {
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let headers: HeaderMap = headers.iter().map(header).collect();
        Answer { status, headers, body: Bytes::copy_from_slice(body) }
    }

    #[test]
    fn lives_are_seconds() {
        for (text, query) in
            [("30s", "?ttl=30.000000000"), ("500ms", "?ttl=0.500000000"), ("1h 1ms", "?ttl=3600.001000000")]
        {
            assert_eq!(ttl_query(humantime::parse_duration(text).expect("a time")), query);
        }
    }

    #[test]
    fn json_tells_value_and_version() {
        let headers = [("kv-version", "7-1"), ("content-type", "text/plain")];
        for (status, headers, body, told) in [
            (
                200,
                &headers[..],
                &b"v"[..],
                r#"{"key":"k","found":true,"version":"7-1","content_type":"text/plain","value":"v"}"#,
            ),
            (
                200,
                &headers[..1],
                &[0xFF],
                r#"{"key":"k","found":true,"version":"7-1","value":"/w==","encoding":"base64"}"#,
            ),
            (204, &headers[..1], &[], r#"{"key":"k","found":true,"version":"7-1"}"#),
            (404, &headers[1..], b"{}", r#"{"key":"k","found":false}"#),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let line = as_json(OsStr::new("k"), &answer(status, headers, body), status.is_success());
            let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
            assert_eq!(value(&line), value(told));
        }
    }

    #[test]
    fn failures_are_told_by_their_sentence() {
        for (status, body, told) in [
            (204, "", Ok(true)),
            (404, r#"{"detail":"x","code":"key_not_found"}"#, Ok(false)),
            (
                404,
                r#"{"detail":"there is nothing here","code":"unknown_route"}"#,
                Err("there is nothing here (404 Not Found, unknown_route)"),
            ),
            (404, "<html>", Err("the router answered 404 Not Found: <html>")),
            (
                503,
                r#"{"type":"about:blank","status":503,"detail":"the follower is gone","code":"follower_unreachable","outcome":"not_applied"}"#,
                Err("the follower is gone (503 Service Unavailable, follower_unreachable, not_applied)"),
            ),
            (400, r#"{"detail":"no"}"#, Err("no (400 Bad Request)")),
            (502, "oops\n", Err("the router answered 502 Bad Gateway: oops")),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let answer = answer(status, &[], body.as_bytes());
            assert_eq!(succeeded(&answer).map_err(|e| e.to_string()), told.map_err(str::to_owned));
        }
    }
}
