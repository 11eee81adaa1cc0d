//! Starting, being ready, stopping, and starting again.

use crate::{
    cluster::{Cluster, NodeConnection, Running, options},
    fake_node::{FakeNode, HELD},
    http::{Http, PATIENCE},
};
use kv_router::Router;
use tokio::time::timeout;

#[tokio::test]
async fn ready_is_when_the_nodes_say_so() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &["--replicas", "2", "--shards", "1"])).await;
    let mut http = Http::connect(router.http).await;
    assert_eq!(http.ask("GET /healthz", &[], b"").await.text(), r#"{"status":"ok"}"#);
    let unready = http.ask("GET /readyz", &[], b"").await;
    assert_eq!((unready.status, unready.header("retry-after")), (503, "1"));
    assert_eq!(
        unready.json()["detail"],
        "8 of 8 partitions take no writes: not all nodes have registered: shard 0 has 0 of 2"
    );
    let put = http.ask("PUT /v1/kv/a", &[], b"v").await;
    assert_eq!((put.status, put.json()["code"].as_str()), (503, Some("no_leader")), "{put:?}");

    let (leader, mut one, mut two) =
        (FakeNode::start().await, NodeConnection::open(&router).await, NodeConnection::open(&router).await);
    one.register(leader.node("n0")).await;
    let mut follower = leader.node("n1");
    follower.prefers_to_lead = false;
    two.register(follower).await;
    let ready = async { while http.ask("GET /readyz", &[], b"").await.status != 200 {} };
    timeout(PATIENCE, ready).await.expect("ready");
    leader.set_trouble(Some("follower n1 cannot be reached"));
    let unready = http.ask("GET /readyz", &[], b"").await;
    assert_eq!(unready.status, 503);
    assert!(unready.json()["detail"].as_str().is_some_and(|d| d.contains("follower n1 cannot be reached")));
}

#[tokio::test]
async fn the_topology_shows_the_map_and_every_node() {
    let cluster = Cluster::start().await;
    let got = cluster.ask("GET /v1/topology", &[], b"").await;
    assert_eq!((got.status, got.header("content-type")), (200, "application/json"));
    let json = got.json();
    assert_eq!(json["router"], "router");
    assert_eq!(json["map"]["partitions"].as_array().map(Vec::len), Some(8));
    assert_eq!(json["nodes"][0]["node"], "n0");
    assert_eq!(json["nodes"][0]["stats"]["replicas"][0]["role"], "leader");
    // A node that cannot be reached is listed with the reason.
    cluster.node.stop();
    let unreachable =
        async { while !cluster.ask("GET /v1/topology", &[], b"").await.json()["nodes"][0]["error"].is_string() {} };
    timeout(PATIENCE, unreachable).await.expect("an error instead");
}

#[tokio::test]
async fn a_node_that_is_down_is_told_at_once() {
    let cluster = Cluster::start_with(&["--deadline-ms", "600000"]).await;
    cluster.node.stop();
    let down = async {
        loop {
            let put = cluster.ask("PUT /v1/kv/a", &[], b"v").await;
            // What was under way when the connection broke is unknown.
            if put.status == 503 {
                break put;
            }
        }
    };
    let put = timeout(PATIENCE, down).await.expect("long before the deadline");
    assert_eq!((put.json()["outcome"].as_str(), put.header("retry-after")), (Some("not_applied"), "1"));
}

#[tokio::test]
async fn a_router_that_starts_again_knows_the_cluster() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.ask("PUT /v1/kv/a", &[], b"v").await.status, 204);
    let before = cluster.ask("GET /v1/topology", &[], b"").await.json();
    let Cluster { router, node, dir, registered } = cluster;
    drop(registered);
    router.stop().await;
    let router = Running::start(options(&dir, &[])).await;
    let mut http = Http::connect(router.http).await;
    assert_eq!(http.ask("GET /v1/kv/a", &[], b"").await.text(), "v");
    assert_eq!(http.ask("GET /v1/topology", &[], b"").await.json()["map"], before["map"]);
    drop(node);
}

#[tokio::test]
async fn what_was_begun_comes_to_its_end_before_the_router_stops() {
    let cluster = Cluster::start().await;
    let (mut busy, idle) = (cluster.http().await, cluster.http().await);
    busy.send(format!("PUT /v1/kv/{HELD} HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nv").as_bytes()).await;
    timeout(PATIENCE, cluster.node.holding.notified()).await.expect("it has come");
    let address = cluster.router.http;
    let stopped = cluster.router.ask_to_stop();
    idle.closed().await;
    cluster.node.let_go();
    let answer = busy.answer().await.expect("an answer");
    assert_eq!((answer.status, answer.header("connection")), (204, "close"));
    timeout(PATIENCE, stopped).await.expect("it ends").expect("no panic").expect("no error");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn what_cannot_be_started_is_told_in_a_sentence() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &[])).await;
    let refused = |more: Vec<String>, dir: tempfile::TempDir| async move {
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let error = Router::start(options(&dir, &more)).await.err().expect("refused");
        (error.to_string(), dir)
    };
    let (error, dir) = refused(vec![], dir).await;
    assert!(error.contains("is in use by another process, a router or the supervisor of `kv local`"), "{error}");
    let address = router.http.to_string();
    let other = tempfile::tempdir().expect("a folder");
    let (error, _) = refused(vec!["--http".into(), address.clone()], other).await;
    assert!(error.contains(&format!("cannot listen at {address} for the HTTP API")), "{error}");
    router.stop().await;
    let (error, _) = refused(vec!["--partitions".into(), "16".into()], dir).await;
    assert!(error.contains("was made with --partitions 8"), "{error}");
}
