//! `/put`, `/get`, `/delete`, as their users know them.

use crate::cluster::Cluster;
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::json;

#[tokio::test]
async fn keys_are_put_got_and_deleted() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    for (request, body, status, answer) in [
        ("GET /get?key=sample_key", "", 404, r#"{"status":"Key not found"}"#),
        ("DELETE /delete?key=sample_key", "", 404, r#"{"status":"Key not found"}"#),
        ("POST /put", r#"{"key": "sample_key", "value": "sample_value"}"#, 200, r#"{"status":"Successful"}"#),
        ("GET /get?key=sample_key", "", 200, r#"{"key":"sample_key","value":"sample_value"}"#),
        ("GET /get/?key=sample_key", "", 200, r#"{"key":"sample_key","value":"sample_value"}"#),
        ("POST /get?key=sample_key", "", 200, r#"{"key":"sample_key","value":"sample_value"}"#),
        ("POST /get/", r#"{"key":"sample_key"}"#, 200, r#"{"key":"sample_key","value":"sample_value"}"#),
        ("PUT /put/", r#"{"key": "sample_key", "value": {"a": [1.0, 1e400]}}"#, 200, r#"{"status":"Successful"}"#),
        ("GET /get?key=sample_key", "", 200, r#"{"key":"sample_key","value":{"a": [1.0, 1e400]}}"#),
        ("DELETE /delete?key=sample_key", "", 200, r#"{"status":"Delete successful"}"#),
        ("GET /get?key=sample_key", "", 404, r#"{"status":"Key not found"}"#),
        ("POST /put/", r#"{"key": "sample_key", "value": null}"#, 200, r#"{"status":"Successful"}"#),
        ("GET /get?key=sample_key", "", 200, r#"{"key":"sample_key","value":null}"#),
        ("GET /delete/?key=sample_key", "", 200, r#"{"status":"Delete successful"}"#),
        ("GET /delete?key=sample_key", "", 404, r#"{"status":"Key not found"}"#),
    ] {
        let got = http.ask(request, &[], body.as_bytes()).await;
        assert_eq!((got.status, got.text()), (status, answer), "{request} {body}");
        assert_eq!(got.header("content-type"), "application/json");
    }
}

#[tokio::test]
async fn answers_say_which_version_and_where_from() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    let put = http.ask("POST /put", &[("x-request-id", "mine")], br#"{"key":"a","value":1}"#).await;
    assert_eq!((put.header("kv-version"), put.header("kv-epoch")), ("0-1", "1"));
    assert_eq!(put.header("x-request-id"), "mine");
    let got = http.ask("HEAD /get?key=a", &[], b"").await;
    assert_eq!((got.status, got.header("kv-version"), got.header("content-length")), (200, "0-1", "21"));
    assert_eq!(got.header("kv-partition"), put.header("kv-partition"));
    assert_eq!(got.header("x-request-id").len(), 16);
}

#[tokio::test]
async fn the_content_type_of_a_put_does_not_matter() {
    let cluster = Cluster::start().await;
    for content_type in ["application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"] {
        let headers = [("content-type", content_type), ("content-encoding", "identity")];
        let put = cluster.ask("POST /put", &headers, br#"{"key":"a","value":1}"#).await;
        assert_eq!(put.status, 200, "{content_type}");
    }
}

#[test]
fn any_key_and_any_value_round_trip() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(Cluster::start());
    let mut runner = TestRunner::new(ProptestConfig { cases: 100, ..ProptestConfig::default() });
    let keys = "\\PC{1,30}|[&%/?+ #=\"\\\\{}\\x00-\\x1f]{1,8}";
    runner
        .run(&(keys, any::<String>()), |(key, value)| {
            runtime.block_on(async {
                let body = json!({ "key": key, "value": value }).to_string();
                let put = cluster.ask("POST /put", &[], body.as_bytes()).await;
                prop_assert_eq!(put.status, 200, "{}", put.text());
                let encoded: String = key.bytes().map(|b| format!("%{b:02X}")).collect();
                let got = cluster.ask(&format!("GET /get?key={encoded}"), &[], b"").await;
                prop_assert_eq!(got.json(), json!({ "key": key, "value": value }));
                let raw = cluster.ask(&format!("GET /v1/kv/{encoded}"), &[], b"").await;
                prop_assert_eq!(raw.body, value.as_bytes());
                prop_assert_eq!(cluster.ask(&format!("DELETE /delete?key={encoded}"), &[], b"").await.status, 200);
                Ok(())
            })
        })
        .expect("round trips");
}

/// Each with a `status` that is a sentence, a `code`, and an `outcome`.
#[tokio::test]
async fn errors_say_what_is_wrong() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    let long = "k".repeat(4097);
    let long_query = format!("GET /get?key={long}");
    let long_body = format!(r#"{{"key":"{long}","value":1}}"#);
    for (request, body, status, code) in [
        ("POST /put", "", 400, "body_wrong_shape"),
        ("POST /put", "{", 400, "body_not_json"),
        ("POST /put", "[]", 400, "body_wrong_shape"),
        ("POST /put", r#"{"key":"a"}"#, 400, "body_wrong_shape"),
        ("POST /put", r#"{"value":1}"#, 400, "body_wrong_shape"),
        ("POST /put", r#"{"key":1,"value":1}"#, 400, "body_wrong_shape"),
        ("POST /put", r#"{"key":"","value":1}"#, 400, "key_empty"),
        ("POST /put", long_body.as_str(), 400, "key_too_large"),
        ("GET /get", "", 400, "key_missing"),
        ("POST /get", "", 400, "key_missing"),
        ("POST /get", "{}", 400, "key_missing"),
        ("POST /get", "x", 400, "body_not_json"),
        ("GET /get?key=", "", 400, "key_empty"),
        ("GET /get?key=a&key=b", "", 400, "key_repeated"),
        ("GET /get?key=%zz", "", 400, "bad_percent_encoding"),
        ("GET /get?key=%ff", "", 400, "key_not_utf8"),
        (long_query.as_str(), "", 400, "key_too_large"),
        ("DELETE /delete", "", 400, "key_missing"),
        ("DELETE /delete?key=", "", 400, "key_empty"),
        ("GET /put", "", 405, "wrong_method"),
        ("DELETE /get?key=a", "", 405, "wrong_method"),
        ("POST /delete?key=a", "", 405, "wrong_method"),
        ("HEAD /delete?key=a", "", 405, "wrong_method"),
        ("GET /get?key=error:overloaded", "", 429, "overloaded"),
        ("GET /get?key=error:not_ready", "", 503, "not_ready"),
        ("POST /put", r#"{"key":"error:follower_unreachable","value":1}"#, 503, "follower_unreachable"),
        ("DELETE /delete?key=error:outcome_unknown", "", 504, "outcome_unknown"),
    ] {
        let got = http.ask(request, &[], body.as_bytes()).await;
        assert_eq!(got.status, status, "{request} {body}: {got:?}");
        assert_eq!(got.headers.contains_key("allow"), status == 405, "{request}");
        assert_eq!(got.headers.contains_key("retry-after"), [429, 503].contains(&status), "{request}");
        if !request.starts_with("HEAD") {
            let json = got.json();
            assert!(json["status"].as_str().is_some_and(|s| s.len() > 10), "{json}");
            assert_eq!(json["code"], code, "{request} {body}");
            assert_eq!(json["outcome"], if status == 504 { "unknown" } else { "not_applied" }, "{json}");
        }
    }
    let encoded = cluster.ask("POST /put", &[("content-encoding", "gzip")], b"x").await;
    assert_eq!((encoded.status, encoded.json()["code"].as_str()), (415, Some("content_encoding")));
}

#[tokio::test]
async fn get_does_not_delete_where_that_is_turned_off() {
    let cluster = Cluster::start_with(&["--no-get-delete"]).await;
    let got = cluster.ask("GET /delete?key=a", &[], b"").await;
    assert_eq!((got.status, got.header("allow")), (405, "DELETE"));
    assert_eq!(cluster.ask("DELETE /delete?key=a", &[], b"").await.status, 404);
}

#[tokio::test]
async fn limits_apply_to_decoded_values() {
    let cluster = Cluster::start_with(&["--max-value-bytes", "1000"]).await;
    let mut http = cluster.http().await;
    let put = |value: String| format!(r#"{{"key":"a","value":"{value}"}}"#);
    for (value, status) in [
        ("x".repeat(1000), 200),
        ("x".repeat(1001), 413),
        ("\\u0001".repeat(1000), 200),
        ("\\u0001".repeat(1001), 413),
        ("я".repeat(500), 200),
        ("я".repeat(501), 413),
    ] {
        let got = http.ask("POST /put", &[], put(value).as_bytes()).await;
        assert_eq!(got.status, status, "{got:?}");
    }
    let got = http.ask("GET /get?key=a", &[], b"").await;
    assert_eq!(got.json()["value"].as_str().map(str::len), Some(1000));
}
