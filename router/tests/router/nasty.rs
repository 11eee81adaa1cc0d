//! Callers that break off, flood, dawdle, or speak something else.

use crate::{
    cluster::Cluster,
    fake_node::{HELD, SILENT},
    http::{Http, PATIENCE},
};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Instant, timeout},
};

#[tokio::test]
async fn half_a_body_stores_nothing() {
    let cluster = Cluster::start().await;
    let head = |path: &str| format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n");
    for (path, part) in [("/v1/kv/half", "0123456789"), ("/put", r#"{"key":"half","value":"#)] {
        let mut http = cluster.http().await;
        http.send((head(path) + part).as_bytes()).await;
        http.stream.shutdown().await.expect("half closed");
        let answer = http.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some("body_incomplete")));
        http.closed().await;
    }
    let mut http = cluster.http().await;
    http.send(b"PUT /v1/kv/half HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
    assert_eq!(http.answer().await.expect("an answer").status, 400);
    assert!(!cluster.node.has(b"half"));
}

/// Runs alone on a clock that jumps whenever nobody has anything to do.
#[tokio::test]
async fn who_dawdles_is_given_up() {
    let cluster = Cluster::start().await;
    let (mut body, mut head, idle) = (cluster.http().await, cluster.http().await, cluster.http().await);
    let mut kept = cluster.http().await;
    tokio::time::pause();
    let start = Instant::now();
    assert_eq!(kept.ask("GET /healthz", &[], b"").await.status, 200);
    body.send(b"PUT /v1/kv/slow HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n0123456789").await;
    head.send(b"PUT /v1/kv/slow HTTP/1.1\r\nhos").await;
    let answer = head.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (408, Some("head_timeout")));
    assert!((5..7).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let answer = body.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (408, Some("body_timeout")));
    assert!((10..13).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    idle.closed().await;
    kept.closed().await;
    assert!((60..65).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert!(!cluster.node.has(b"slow"));
}

#[tokio::test]
async fn floods_and_garbage_are_refused() {
    let cluster = Cluster::start().await;
    let long_value = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    let long_address = format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(40_000));
    let endless = format!("GET / HTTP/1.1\r\n{}", "x: y\r\n".repeat(50_000));
    for (bytes, status) in [
        (long_value.as_bytes(), 431),
        (endless.as_bytes(), 431),
        (long_address.as_bytes(), 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\xc5\x4b\x01\x00\x00\x00\x00\x00\r\n\r\n", 400),
        (b"GET /get?key=a b HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"PUT /v1/kv/a HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
    ] {
        let mut http = cluster.http().await;
        // The other end may answer and close before it has read all of a flood.
        let _ = http.stream.write_all(bytes).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
        assert_eq!(http.answer().await.expect("an answer").status, status, "{shown:?}");
        http.closed().await;
    }
    assert_eq!(cluster.ask("GET /healthz", &[], b"").await.status, 200);
}

#[tokio::test]
async fn too_large_a_head_is_told_so() {
    let cluster = Cluster::start().await;
    let (long, many) = ("y".repeat(17_000), "x: y\r\n".repeat(101));
    for (head, status, code) in [
        (format!("GET /get?key=a HTTP/1.1\r\nx: {long}\r\n"), 431, "head_too_large"),
        (format!("GET /get?key=a HTTP/1.1\r\n{many}"), 431, "head_too_large"),
        (format!("GET /{long} HTTP/1.1\r\n"), 414, "uri_too_long"),
        (format!("PUT /v1/kv/{long} HTTP/1.1\r\ncontent-length: 1000000\r\n"), 414, "uri_too_long"),
    ] {
        let mut http = cluster.http().await;
        http.send(format!("{head}x-request-id: mine\r\n\r\n").as_bytes()).await;
        let answer = http.answer().await.expect("an answer");
        let json = answer.json();
        assert_eq!(
            (answer.status, json["code"].as_str(), json["outcome"].as_str()),
            (status, Some(code), Some("not_applied"))
        );
        assert_eq!(
            (answer.header("content-type"), answer.header("x-request-id")),
            ("application/problem+json", "mine")
        );
        http.closed().await;
    }
}

#[tokio::test]
async fn too_long_a_body_is_refused_before_it_is_sent() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    http.send(b"PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 1048577\r\n\r\n").await;
    assert_eq!(http.answer().await.expect("an answer").status, 413);
    http.closed().await;
    // Without its length told, as soon as it is too long.
    let mut http = cluster.http().await;
    http.send(b"PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let chunk = [b"10000\r\n", &[b'x'; 0x10000][..], b"\r\n"].concat();
    for _ in 0..17 {
        if http.stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    assert_eq!(http.answer().await.expect("an answer").status, 413);
    assert!(!cluster.node.has(b"a"));
}

#[tokio::test]
async fn expectations_chunks_and_old_versions_work() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    http.send(b"PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n").await;
    assert_eq!(http.answer().await.expect("go on").status, 100);
    http.send(b"ab").await;
    assert_eq!(http.answer().await.expect("an answer").status, 204);
    http.send(b"PUT /v1/kv/b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
        .await;
    assert_eq!(http.answer().await.expect("an answer").status, 204);
    assert_eq!(http.ask("GET /v1/kv/b", &[], b"").await.text(), "abc");
    let mut http = cluster.http().await;
    http.send(b"GET /v1/kv/b HTTP/1.0\r\n\r\n").await;
    assert_eq!(http.answer().await.expect("an answer").text(), "abc");
    http.closed().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    let mut requests = String::new();
    for i in 0..100 {
        requests += &format!("PUT /v1/kv/k{i} HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\n{i:03}");
        requests += &format!("GET /v1/kv/k{i} HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    http.send(requests.as_bytes()).await;
    for i in 0..100 {
        assert_eq!(http.answer().await.expect("a put").status, 204);
        assert_eq!(http.answer().await.expect("a get").text(), format!("{i:03}"));
    }
}

#[tokio::test]
async fn a_thousand_idle_connections_do_not_disturb() {
    let cluster = Cluster::start().await;
    let mut idle = Vec::new();
    for i in 0..1000 {
        let mut http = cluster.http().await;
        if i % 2 == 1 {
            http.send(b"GET /get?key=").await;
        }
        idle.push(http);
    }
    assert_eq!(cluster.ask("PUT /v1/kv/a", &[], b"v").await.status, 204);
    let answer = idle[0].ask("GET /v1/kv/a", &[], b"").await;
    assert_eq!(answer.text(), "v", "who was idle is served");
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let cluster = Cluster::start_with(&["--max-connections", "2"]).await;
    // The connection that waited for readiness may still be closing.
    let (mut one, mut two) = (Http::connect(cluster.router.http).await, Http::connect(cluster.router.http).await);
    let served = async |http: &mut Http| {
        loop {
            http.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
            match http.answer().await {
                Some(answer) if answer.status == 200 => break,
                _ => *http = Http::connect(cluster.router.http).await,
            }
        }
    };
    timeout(PATIENCE, async { (served(&mut one).await, served(&mut two).await) }).await.expect("two places");
    let mut three = cluster.http().await;
    let answer = three.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("too_many_connections")));
    assert_eq!(answer.header("retry-after"), "1");
    three.closed().await;
    drop(one);
    let mut four = Http::connect(cluster.router.http).await;
    timeout(PATIENCE, served(&mut four)).await.expect("a free place");
    drop(two);
}

#[tokio::test]
async fn what_is_not_answered_is_unknown_for_writes_only() {
    let cluster = Cluster::start_with(&["--deadline-ms", "300"]).await;
    let mut http = cluster.http().await;
    let read = http.ask(&format!("GET /get?key={SILENT}"), &[], b"").await;
    assert_eq!((read.status, read.json()["outcome"].as_str()), (503, Some("not_applied")), "{read:?}");
    for (request, body) in [
        (format!("PUT /v1/kv/{SILENT}"), String::new()),
        ("POST /put".to_string(), format!(r#"{{"key":"{SILENT}","value":1}}"#)),
        (format!("DELETE /delete?key={SILENT}"), String::new()),
    ] {
        let write = http.ask(&request, &[], body.as_bytes()).await;
        assert_eq!((write.status, write.json()["outcome"].as_str()), (504, Some("unknown")), "{write:?}");
        assert!(!write.headers.contains_key("retry-after"));
    }
}

#[tokio::test]
async fn a_write_goes_on_when_its_caller_has_gone() {
    let cluster = Cluster::start().await;
    let mut http = cluster.http().await;
    http.send(format!("PUT /v1/kv/{HELD} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nv").as_bytes()).await;
    timeout(PATIENCE, cluster.node.holding.notified()).await.expect("it has come");
    drop(http);
    cluster.node.let_go();
    let stored = async {
        while !cluster.node.has(HELD.as_bytes()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, stored).await.expect("stored");
    assert_eq!(cluster.ask("GET /healthz", &[], b"").await.status, 200);
}
