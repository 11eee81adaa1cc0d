//! `kv get`, `kv put` and `kv delete`: the store from a shell, over the router's `/v1/kv/{key}`.
//!
//! Values are bytes: taken from an argument or stdin as they are, written to stdout as they are.

use crate::http::{Answer, Api, ClusterOptions, key_path};
use anyhow::{Context, bail};
use hyper::{Method, StatusCode, body::Bytes};
use std::{
    ffi::{OsStr, OsString},
    io::{self, Read, Write},
    os::unix::ffi::{OsStrExt, OsStringExt},
    process::ExitCode,
};

/// Exit code that says that the key has no value.
const EXIT_MISSING: u8 = 1;

/// What to read.
#[derive(clap::Args, Debug)]
pub(crate) struct GetOptions {
    /// The key
    key: OsString,
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
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// What to remove.
#[derive(clap::Args, Debug)]
pub(crate) struct DeleteOptions {
    /// The key
    key: OsString,
    #[command(flatten)]
    cluster: ClusterOptions,
}

pub(crate) async fn get(options: GetOptions) -> anyhow::Result<ExitCode> {
    let answer = ask(&options.cluster, Method::GET, &options.key, None, Bytes::new()).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(missing(&options.key));
    }
    succeeded(&answer)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(&answer.body).and_then(|()| stdout.flush()).context("cannot write the value to stdout")?;
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
    succeeded(&ask(&options.cluster, Method::PUT, &options.key, content_type, value).await?)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn delete(options: DeleteOptions) -> anyhow::Result<ExitCode> {
    let answer = ask(&options.cluster, Method::DELETE, &options.key, None, Bytes::new()).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(missing(&options.key));
    }
    succeeded(&answer)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(
    cluster: &ClusterOptions,
    method: Method,
    key: &OsStr,
    content_type: Option<&str>,
    value: impl Into<Bytes>,
) -> anyhow::Result<Answer> {
    if key.is_empty() {
        bail!("the key is empty; a key has 1 to 4096 bytes");
    }
    Api::new(cluster)?.send(method, &key_path(key.as_bytes()), content_type, value).await
}

fn missing(key: &OsStr) -> ExitCode {
    eprintln!("kv: the key {} has no value", key.display());
    ExitCode::from(EXIT_MISSING)
}

fn succeeded(answer: &Answer) -> anyhow::Result<()> {
    if answer.status.is_success() { Ok(()) } else { bail!("{}", reason(answer.status, &answer.body)) }
}

/// What a failed answer says: the sentence of its problem document with its code and outcome, else its body.
fn reason(status: StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Problem {
        detail: String,
        code: Option<String>,
        outcome: Option<String>,
    }
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => {
            let tags: Vec<_> =
                [Some(status.to_string()), problem.code, problem.outcome].into_iter().flatten().collect();
            format!("{} ({})", problem.detail, tags.join(", "))
        }
        Err(_) => format!("the router answered {status}: {}", String::from_utf8_lossy(body).trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_by_their_sentence() {
        for (status, body, told) in [
            (
                StatusCode::SERVICE_UNAVAILABLE,
                r#"{"type":"about:blank","title":"x","status":503,"detail":"the follower is gone","code":"follower_unreachable","outcome":"not_applied"}"#,
                "the follower is gone (503 Service Unavailable, follower_unreachable, not_applied)",
            ),
            (StatusCode::BAD_REQUEST, r#"{"detail":"no"}"#, "no (400 Bad Request)"),
            (StatusCode::BAD_GATEWAY, "oops\n", "the router answered 502 Bad Gateway: oops"),
        ] {
            assert_eq!(reason(status, body.as_bytes()), told);
        }
    }
}
