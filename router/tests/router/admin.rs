//! What a person wants of the cluster, over HTTP.

use crate::{
    cluster::{Cluster, NodeConnection},
    fake_node::PARTITIONS,
    http::{Answer, PATIENCE},
};
use kv_proto::{
    ids::{NodeId, PartitionId},
    request::AdminCommand,
};
use serde_json::json;
use tokio::time::timeout;

async fn post(cluster: &Cluster, what: &str, body: &serde_json::Value) -> Answer {
    cluster.ask(&format!("POST /v1/admin/{what}"), &[], body.to_string().as_bytes()).await
}

fn code(answer: &Answer) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn leaders_are_told_and_each_partition_has_its_answer() {
    let cluster = Cluster::start().await;
    let all = post(&cluster, "handoff", &json!({"all": true})).await;
    assert_eq!(all.status, 202, "{all:?}");
    let json = all.json();
    assert_eq!(json["accepted"].as_array().map(Vec::len), Some(usize::from(PARTITIONS) - 1));
    assert_eq!(json["accepted"][0], json!({"partition": 1, "leader": "n0", "epoch": 1}));
    let refused = &json["refused"][0];
    assert_eq!((&refused["partition"], &refused["code"]), (&json!(0), &json!("not_in_sync")));

    let node = NodeId::new("n0").expect("a node id");
    let (partition, before) = (PartitionId(3), cluster.node.commands().len());
    assert_eq!(post(&cluster, "handoff", &json!({"partitions": [3], "to": "n0"})).await.status, 202);
    assert_eq!(post(&cluster, "drop", &json!({"partitions": [3], "node": "n0"})).await.status, 202);
    let expected = [AdminCommand::Handoff { partition, to: Some(node) }, AdminCommand::Drop { partition, node }];
    assert_eq!(cluster.node.commands()[before..], expected);

    let none = post(&cluster, "drop", &json!({"partitions": [0], "node": "n0"})).await;
    assert_eq!(code(&none), (409, "not_in_sync".to_owned()));
    assert_eq!(none.json()["detail"], "partition 0: it has no in-sync follower (not_in_sync)");
    assert_eq!(none.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anybody_is_told() {
    let cluster = Cluster::start().await;
    for (what, body, expected) in [
        ("handoff", json!({}), (400, "body_wrong_shape")),
        ("handoff", json!({"partitions": [PARTITIONS]}), (404, "unknown_partition")),
        ("drop", json!({"all": true, "node": "x"}), (404, "unknown_node")),
        ("drop", json!({"all": true, "node": "n0"}), (409, "nothing_to_do")),
        ("nonsense", json!({}), (404, "unknown_route")),
    ] {
        assert_eq!(code(&post(&cluster, what, &body).await), (expected.0, expected.1.to_owned()), "{what} {body}");
    }
    let got = cluster.ask("GET /v1/admin/handoff", &[], b"").await;
    assert_eq!((got.status, got.header("allow")), (405, "POST"));
    assert_eq!(cluster.node.commands(), []);
}

/// The API listens where a browser on the same machine reaches it.
#[tokio::test]
async fn pages_of_other_sites_cannot_rule_the_cluster() {
    let cluster = Cluster::start().await;
    for headers in [
        &[("origin", "http://evil.example"), ("sec-fetch-site", "cross-site"), ("content-type", "text/plain")][..],
        &[("origin", "null")],
        &[("sec-fetch-site", "same-site")],
    ] {
        for what in ["handoff", "drop", "force-recover"] {
            let answer = cluster.ask(&format!("POST /v1/admin/{what}"), headers, br#"{"all": true}"#).await;
            assert_eq!(code(&answer), (403, "cross_origin".to_owned()), "{headers:?}");
        }
    }
    assert_eq!(cluster.node.commands(), []);
}

#[tokio::test]
async fn a_forced_recovery_begins_another_history_and_only_where_the_leader_does_not_serve() {
    let mut cluster = Cluster::start().await;
    let wish = |epoch, stopped| json!({"leader": "n0", "partitions": [{"partition": 3, "epoch": epoch}], "old_leader_is_stopped": stopped});
    assert_eq!(code(&post(&cluster, "force-recover", &wish(1, false)).await), (400, "not_confirmed".to_owned()));
    let serves = post(&cluster, "force-recover", &wish(1, true)).await;
    assert_eq!(code(&serves), (409, "not_recoverable".to_owned()));
    assert!(serves.json()["detail"].as_str().is_some_and(|d| d.contains("its leader n0 answers and leads")));

    let before = cluster.ask("GET /v1/map", &[], b"").await.json()["partitions"][3]["configuration"].clone();
    cluster.node.set_trouble(Some("its log is damaged"));
    let recovered = post(&cluster, "force-recover", &wish(1, true)).await;
    assert_eq!(recovered.status, 200, "{recovered:?}");
    let accepted = recovered.json()["accepted"][0].clone();
    assert_eq!((&accepted["partition"], &accepted["epoch"]), (&json!(3), &json!(2)));
    assert!(accepted["history"].is_u64() && accepted["history"] != before["history"], "{accepted} {before}");
    let map = cluster.registered.map().await;
    let now = map.configuration(PartitionId(3)).expect("created");
    assert_eq!((now.epoch.0, json!(now.history), now.in_sync.len()), (2, accepted["history"].clone(), 0));

    // The person looked at what is there no more.
    let late = post(&cluster, "force-recover", &wish(1, true)).await;
    assert_eq!(code(&late), (409, "not_recoverable".to_owned()));
    assert!(late.json()["detail"].as_str().is_some_and(|d| d.contains("replaces epoch 1")), "{late:?}");

    cluster.node.stop();
    let unreachable =
        async { while code(&post(&cluster, "force-recover", &wish(2, true)).await).1 != "leader_unreachable" {} };
    timeout(PATIENCE, unreachable).await.expect("it does not answer");
}

#[tokio::test]
async fn a_newer_map_is_waited_for() {
    let cluster = Cluster::start().await;
    let map = cluster.ask("GET /v1/map", &[], b"").await;
    assert_eq!((map.status, map.header("content-type")), (200, "application/json"));
    let version = map.json()["version"].as_u64().expect("a version");
    let older = cluster.ask(&format!("GET /v1/map?after={}", version - 1), &[], b"").await;
    assert_eq!(older.json()["version"], version);
    let change = async {
        let mut again = NodeConnection::open(&cluster.router).await;
        let mut node = cluster.node.node("n0");
        node.executors = 3;
        again.register(node).await;
        again
    };
    let request = format!("GET /v1/map?after={version}");
    let (newer, _again) = tokio::join!(cluster.ask(&request, &[], b""), change);
    assert_eq!(newer.json()["version"], version + 1);
    for bad in ["x", "", "-1", "1&after=2"] {
        let answer = cluster.ask(&format!("GET /v1/map?after={bad}"), &[], b"").await;
        assert_eq!(code(&answer), (400, "bad_version".to_owned()), "{bad}");
    }
}
