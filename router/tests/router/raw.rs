//! `/v1/kv/KEY`.

use crate::cluster::Cluster;

#[tokio::test]
async fn bytes_are_kept_as_they_are() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    let bytes: Vec<u8> = (0..=255).collect();
    let put = http.ask("PUT /v1/kv/a/b%2Fc%00?x=1", &[("content-type", "image/png")], &bytes).await;
    assert_eq!((put.status, put.header("etag"), put.header("kv-version")), (204, "\"0-1\"", "0-1"));
    assert!(cluster.node.has(b"a/b/c\0"));
    let got = http.ask("GET /v1/kv/a/b/c%00", &[], b"").await;
    assert_eq!((got.status, got.header("etag"), got.header("content-type")), (200, "\"0-1\"", "image/png"));
    assert_eq!(got.header("x-content-type-options"), "nosniff");
    assert_eq!(got.header("content-security-policy"), "sandbox; default-src 'none'");
    assert_eq!(got.body, bytes);
    let head = http.ask("HEAD /v1/kv/a/b/c%00", &[], b"").await;
    assert_eq!((head.status, head.header("content-length"), head.header("etag")), (200, "256", "\"0-1\""));
    let deleted = http.ask("DELETE /v1/kv/a/b/c%00", &[], b"").await;
    assert_eq!((deleted.status, deleted.header("etag")), (204, "\"0-2\""));
    for request in ["GET /v1/kv/a/b/c%00", "DELETE /v1/kv/a/b/c%00"] {
        let got = http.ask(request, &[], b"").await;
        assert_eq!((got.status, got.json()["code"].as_str()), (404, Some("key_not_found")));
        assert_eq!(got.header("content-type"), "application/problem+json");
    }
}

#[tokio::test]
async fn keys_are_any_bytes_and_a_plus_is_a_plus() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    for (path, key) in [
        ("a+b", &b"a+b"[..]),
        ("%ff%fe", b"\xff\xfe"),
        ("a/", b"a/"),
        ("/", b"/"),
        ("%25", b"%"),
        ("a%20b", b"a b"),
        ("key?query", b"key"),
    ] {
        let put = http.ask(&format!("PUT /v1/kv/{path}"), &[], b"v").await;
        assert_eq!(put.status, 204, "{path}");
        assert!(cluster.node.has(key), "{path}");
        let got = http.ask(&format!("GET /v1/kv/{path}"), &[], b"").await;
        assert_eq!((got.text(), got.header("content-type")), ("v", "application/octet-stream"));
    }
}

#[tokio::test]
async fn both_faces_show_the_same_values() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    for (content_type, bytes, expected) in [
        ("application/json", &b"{\"a\": 1}"[..], r#"{"key":"a","value":{"a": 1}}"#),
        ("text/html", b"<b>", r#"{"key":"a","value":"<b>"}"#),
        ("image/png", b"\x89PNG", r#"{"key":"a","value":"iVBORw==","encoding":"base64"}"#),
    ] {
        http.ask("PUT /v1/kv/a", &[("content-type", content_type)], bytes).await;
        assert_eq!(http.ask("GET /get?key=a", &[], b"").await.text(), expected);
    }
    http.ask("POST /put", &[], br#"{"key":"a","value":"text"}"#).await;
    let got = http.ask("GET /v1/kv/a", &[], b"").await;
    assert_eq!((got.text(), got.header("content-type")), ("text", "text/plain; charset=utf-8"));
    http.ask("POST /put", &[], br#"{"key":"a","value":[1, 2]}"#).await;
    let got = http.ask("GET /v1/kv/a", &[], b"").await;
    assert_eq!((got.text(), got.header("content-type")), ("[1, 2]", "application/json"));
}

#[tokio::test]
async fn conditions() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    for (request, condition, status, etag) in [
        ("PUT", ("if-match", "*"), 412, ""),
        ("PUT", ("if-match", "\"0-1\""), 412, ""),
        ("PUT", ("if-none-match", "*"), 204, "\"0-1\""),
        ("PUT", ("if-none-match", "*"), 412, "\"0-1\""),
        ("PUT", ("if-match", "\"0-1\""), 204, "\"0-2\""),
        ("PUT", ("if-match", "\"0-1\""), 412, "\"0-2\""),
        ("PUT", ("if-match", "\"abc\""), 412, ""),
        ("PUT", ("if-match", "abc"), 400, ""),
        ("PUT", ("if-none-match", "\"0-2\""), 400, ""),
        ("GET", ("if-none-match", "\"0-2\""), 304, "\"0-2\""),
        ("GET", ("if-none-match", "\"0-1\""), 200, "\"0-2\""),
        ("GET", ("if-match", "\"0-1\""), 412, "\"0-2\""),
        ("HEAD", ("if-none-match", "*"), 304, "\"0-2\""),
        ("DELETE", ("if-none-match", "*"), 400, ""),
        ("DELETE", ("if-match", "\"0-1\""), 412, "\"0-2\""),
        ("DELETE", ("if-match", "\"0-2\""), 204, "\"0-3\""),
        ("GET", ("if-none-match", "*"), 404, ""),
    ] {
        let body: &[u8] = if request == "PUT" { b"v" } else { b"" };
        let got = http.ask(&format!("{request} /v1/kv/a"), &[condition], body).await;
        assert_eq!((got.status, got.header("etag")), (status, etag), "{request} {condition:?}");
    }
}

#[tokio::test]
async fn errors_are_problems() {
    let cluster = Cluster::start_with(&["--max-value-bytes", "1000"]).await;
    let long_key = format!("PUT /v1/kv/{}", "k".repeat(4097));
    let long_type = "x".repeat(256);
    let none = ("accept", "*/*");
    for (request, header, body, status, code) in [
        ("GET /v1/kv/", none, 0, 400, "key_empty"),
        ("GET /v1/kv", none, 0, 400, "key_empty"),
        ("GET /v1/kv/%f", none, 0, 400, "bad_percent_encoding"),
        (long_key.as_str(), none, 1, 400, "key_too_large"),
        ("PUT /v1/kv/a", none, 1001, 413, "body_too_large"),
        ("PUT /v1/kv/a", ("content-type", long_type.as_str()), 1, 400, "content_type_too_large"),
        ("PUT /v1/kv/a", ("content-encoding", "br"), 1, 415, "content_encoding"),
        ("POST /v1/kv/a", none, 1, 405, "wrong_method"),
        ("GET /v2", none, 0, 404, "unknown_route"),
        ("GET /favicon.ico", none, 0, 404, "unknown_route"),
        ("PUT /v1/kv/error:overloaded", none, 1, 429, "overloaded"),
        ("PUT /v1/kv/error:not_ready", none, 1, 503, "not_ready"),
        ("PUT /v1/kv/error:outcome_unknown", none, 1, 504, "outcome_unknown"),
        ("PUT /v1/kv/error:memory_full", none, 1, 507, "memory_full"),
        ("PUT /v1/kv/error:disk_full", none, 1, 507, "disk_full"),
        ("PUT /v1/kv/a?ttl=soon", none, 1, 400, "bad_ttl"),
        ("PUT /v1/kv/a?ttl=0", none, 1, 400, "bad_ttl"),
        ("PUT /v1/kv/a?ttl=1&ttl=2", none, 1, 400, "bad_ttl"),
    ] {
        let got = cluster.ask(request, &[header], &vec![0; body]).await;
        let json = got.json();
        assert_eq!((got.status, json["code"].as_str()), (status, Some(code)), "{request}");
        assert_eq!(got.header("content-type"), "application/problem+json");
        assert_eq!(json["status"], status, "{json}");
        assert_eq!(json["outcome"], if status == 504 { "unknown" } else { "not_applied" });
        assert_eq!(json["retryable"], [429, 503].contains(&status), "{json}");
        assert!(json["detail"].is_string() && json["title"].is_string() && json["type"].is_string(), "{json}");
    }
    let nowhere = cluster.ask("GET /nowhere", &[], b"").await;
    assert_eq!(nowhere.json()["detail"], "there is nothing at /nowhere: GET / lists the addresses");
    assert!(cluster.ask("GET /", &[], b"").await.text().contains("/v1/kv/KEY"));
}

#[tokio::test]
async fn a_value_at_the_limit_passes_and_comes_back() {
    let cluster = Cluster::start().await;
    let value: Vec<u8> = (0..1024 * 1024u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut http = cluster.http().await;
    assert_eq!(http.ask("PUT /v1/kv/large", &[], &value).await.status, 204);
    assert!(http.ask("GET /v1/kv/large", &[], b"").await.body == value);
}

#[tokio::test]
async fn a_life_goes_to_the_node_in_milliseconds() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    for (query, ttl_ms, left) in [
        ("", None, ""),
        ("?ttl=60", Some(60_000), "60.000"),
        ("?x=1&ttl=0.5", Some(500), "0.500"),
        ("?ttl=0.0011", Some(2), "0.002"),
    ] {
        assert_eq!(http.ask(&format!("PUT /v1/kv/a{query}"), &[], b"v").await.status, 204, "{query}");
        assert_eq!(cluster.node.ttl_ms(b"a"), ttl_ms, "{query}");
        assert_eq!(http.ask("GET /v1/kv/a", &[], b"").await.header("kv-expires-in"), left, "{query}");
    }
    http.ask("PUT /v1/kv/a?ttl=60", &[], b"v").await;
    http.ask("POST /put?ttl=60", &[], br#"{"key":"a","value":1}"#).await;
    assert_eq!(cluster.node.ttl_ms(b"a"), None, "the documented addresses know no life");
}
