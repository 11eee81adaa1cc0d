//! Several controllers, each in a router of its own.

use crate::{
    cluster::{NodeConnection, Received, Running, options},
    fake_node::FakeNode,
    http::{Http, PATIENCE},
};
use kv_proto::{
    cluster_map::{ClusterMap, Node},
    codec,
    control::{Change, FromController, Proposal, ToController},
    error_code::ErrorCode,
    frame::{Kind, append_message},
    hello::Caller,
    ids::{DiskId, Epoch, PartitionId},
};
use kv_router::{Router, RouterOptions};
use std::{net::TcpListener, time::Duration};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, time::timeout};

const COUNT: usize = 3;
const NODES: [&str; 2] = ["n0", "n1"];

/// Routers that may run or not.
struct Controllers {
    dirs: Vec<TempDir>,
    ports: Vec<u16>,
    running: Vec<Option<Running>>,
    node: FakeNode,
}

impl Controllers {
    /// None of them runs yet.
    async fn new() -> Controllers {
        let free: Vec<_> = (0..COUNT).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        Controllers {
            dirs: (0..COUNT).map(|_| tempfile::tempdir().expect("a folder")).collect(),
            ports: free.iter().map(|l| l.local_addr().expect("an address").port()).collect(),
            running: (0..COUNT).map(|_| None).collect(),
            node: FakeNode::start().await,
        }
    }

    async fn all() -> Controllers {
        let mut controllers = Controllers::new().await;
        for at in 0..COUNT {
            controllers.start(at).await;
        }
        controllers
    }

    fn options(&self, at: usize) -> RouterOptions {
        let listen = format!("127.0.0.1:{}", self.ports[at]);
        let peers: Vec<_> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let (replicas, peers) = (NODES.len().to_string(), peers.join(","));
        let more = ["--controller-listen", &listen, "--controller-peers", &peers, "--replicas", &replicas];
        options(&self.dirs[at], &more)
    }

    async fn start(&mut self, at: usize) {
        self.running[at] = Some(Running::start(self.options(at)).await);
    }

    async fn stop(&mut self, at: usize) {
        self.running[at].take().expect("it runs").stop().await;
    }

    fn router(&self, at: usize) -> &Running {
        self.running[at].as_ref().expect("it runs")
    }

    /// The node, with an address that makes a change of it.
    fn changed(&self, name: &str, change: u16) -> Node {
        let address = format!("127.0.0.1:{}", 1 + change);
        Node { address, ..self.node.node(name) }
    }

    /// Registers at a controller until it does, as a node would; the map as it is then.
    async fn register(&self, at: usize, node: &Node) -> (NodeConnection, ClusterMap) {
        let registered = async {
            loop {
                if let Some(registered) = try_register(self.router(at), node).await {
                    return registered;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, registered).await.expect("registered")
    }
}

/// One attempt; the map in which the node is.
async fn try_register(router: &Running, node: &Node) -> Option<(NodeConnection, ClusterMap)> {
    let mut connection = NodeConnection::connect(router).await;
    connection.hello(None, Caller::Node).await;
    let Received::Welcome(_) = connection.receive().await else { return None };
    connection.send(&ToController::Register { cluster: None, node: node.clone() }).await;
    match connection.receive().await {
        Received::Message(_, FromController::Registered { .. }) => {}
        Received::End => return None,
        other => panic!("{other:?}"),
    }
    loop {
        let map = connection.map().await;
        if map.node(node.id) == Some(node) {
            return Some((connection, map));
        }
    }
}

#[tokio::test]
async fn nodes_may_be_at_whichever_they_like() {
    let controllers = Controllers::all().await;
    let (mut one, _) = controllers.register(0, &controllers.node.node("n0")).await;
    let (mut two, map) = controllers.register(1, &controllers.node.node("n1")).await;
    assert!(map.is_complete());
    assert_eq!(one.map().await, map, "who is at another one is told");
    let (mut three, same) = controllers.register(2, &controllers.node.node("n1")).await;
    assert_eq!(same, map);

    let leader = map.configuration(PartitionId(3)).expect("created").leader;
    let (asking, other) = if leader.node.as_str() == "n0" { (&mut one, &mut two) } else { (&mut two, &mut one) };
    let proposal = Proposal { id: 1, partition: PartitionId(3), epoch: Epoch(1), change: Change::Reopen { leader } };
    let propose = ToController::Propose(vec![proposal]);
    assert_eq!(asking.ask(&propose).await, FromController::Decided(vec![None]));
    for connection in [other, &mut three] {
        assert_eq!(connection.map().await.configuration(PartitionId(3)).map(|c| c.epoch), Some(Epoch(2)));
    }
    for at in 0..COUNT {
        let mut http = Http::connect(controllers.router(at).http).await;
        let topology = http.ask("GET /v1/topology", &[], b"").await.json();
        assert_eq!(topology["map"]["cluster"], map.cluster.to_string());
    }
}

#[tokio::test]
async fn any_one_of_them_may_be_missing() {
    let mut controllers = Controllers::all().await;
    controllers.register(0, &controllers.changed("n0", 0)).await;
    let mut change = 0;
    for missing in 0..COUNT {
        controllers.stop(missing).await;
        for at in (0..COUNT).filter(|at| *at != missing) {
            change += 1;
            controllers.register(at, &controllers.changed("n0", change)).await;
        }
        controllers.start(missing).await;
        // It learns what it has missed.
        controllers.register(missing, &controllers.changed("n0", change)).await;
    }
}

#[tokio::test]
async fn one_alone_changes_nothing_and_still_answers() {
    let mut controllers = Controllers::all().await;
    let node = controllers.changed("n0", 0);
    let (_, map) = controllers.register(2, &node).await;
    controllers.stop(0).await;
    controllers.stop(1).await;
    assert!(
        try_register(controllers.router(2), &controllers.changed("n0", 1)).await.is_none(),
        "not without a majority"
    );
    let (_, known) = controllers.register(2, &node).await;
    assert_eq!(known, map, "what is known already needs no majority");
    let mut http = Http::connect(controllers.router(2).http).await;
    assert_eq!(http.ask("GET /v1/topology", &[], b"").await.status, 200);
    controllers.stop(2).await;
    controllers.start(2).await;
    let (_, known) = controllers.register(2, &node).await;
    assert_eq!(known, map, "neither after a restart");
    controllers.start(0).await;
    controllers.register(2, &controllers.changed("n0", 2)).await;
}

/// It is another controller than the one that voted; the others take it in, and then it counts.
#[tokio::test]
async fn one_that_lost_its_folder_takes_part_again() {
    let mut controllers = Controllers::all().await;
    controllers.register(0, &controllers.changed("n0", 0)).await;
    controllers.stop(1).await;
    std::fs::remove_dir_all(controllers.dirs[1].path().join("router")).expect("lost");
    controllers.start(1).await;
    controllers.register(1, &controllers.changed("n0", 1)).await;
    for (change, missing) in [(2, 0), (3, 2)] {
        wait_until_three_vote(&controllers).await;
        controllers.stop(missing).await;
        controllers.register(1, &controllers.changed("n0", change)).await;
        controllers.start(missing).await;
    }
}

/// A change is carried out while any other one is stopped only if the third has a vote, which comes a moment after it
/// knows the cluster.
async fn wait_until_three_vote(controllers: &Controllers) {
    let voters = async {
        loop {
            let mut all = true;
            for at in 0..COUNT {
                let metrics =
                    Http::connect(controllers.router(at).http).await.ask("GET /v1/controllers", &[], b"").await;
                all &= metrics.status == 200 && metrics.json()["voters"].as_array().map(Vec::len) == Some(COUNT);
            }
            if all {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, voters).await.expect("three voters");
}

#[tokio::test]
async fn one_becomes_three_and_three_do_not_become_one() {
    let mut controllers = Controllers::new().await;
    let alone = RouterOptions { controller_peers: Vec::new(), ..controllers.options(0) };
    controllers.running[0] = Some(Running::start(alone.clone()).await);
    let (_, map) = controllers.register(0, &controllers.changed("n0", 0)).await;
    controllers.stop(0).await;
    for at in [1, 2, 0] {
        controllers.start(at).await;
    }
    let (_, known) = controllers.register(2, &controllers.changed("n0", 0)).await;
    assert_eq!(known, map);
    wait_until_three_vote(&controllers).await;
    controllers.stop(0).await;
    controllers.register(1, &controllers.changed("n0", 1)).await;
    let error = Router::start(alone).await.err().expect("refused").to_string();
    assert!(error.contains("is one of 3, and cannot go on alone"), "{error}");
}

#[tokio::test]
async fn a_name_belongs_to_one_process_wherever_it_is_connected() {
    let controllers = Controllers::all().await;
    let (_first, _) = controllers.register(0, &controllers.node.node("n0")).await;
    let stranger = Node { disk: DiskId(8), address: "127.0.0.1:1".to_string(), ..controllers.node.node("n0") };
    let register = ToController::Register { cluster: None, node: stranger.clone() };
    let mut second = NodeConnection::open(controllers.router(1)).await;
    // Who has heard of the first one by now.
    controllers.register(1, &controllers.node.node("n0")).await;
    let answer = second.ask(&register).await;
    let FromController::Refused(why) = answer else { panic!("{answer:?}") };
    assert!(why.contains("another process is registered as n0"), "{why}");
    controllers.node.stop();
    controllers.register(1, &stranger).await;
}

#[tokio::test]
async fn nonsense_from_a_controller_ends_nothing() {
    let controllers = Controllers::all().await;
    let (_, map) = controllers.register(0, &controllers.changed("n0", 0)).await;
    let cluster = Some(map.cluster);
    let high = u64::MAX;
    let vote = |term: u64, committed: bool| {
        format!(r#"{{"leader_id":{{"term":{term},"node_id":1}},"committed":{committed}}}"#)
    };
    let log_id = |term: u64, index: u64| format!(r#"{{"leader_id":{{"term":{term},"node_id":1}},"index":{index}}}"#);
    let membership = r#"{"log_id":null,"membership":{"configs":[],"nodes":{}}}"#;
    let bodies = [
        String::new(),
        "null".to_owned(),
        "[".repeat(100_000),
        r#""Nothing""#.to_owned(),
        format!(r#"{{"Vote":{{"vote":{},"last_log_id":null}}}}"#, vote(high, false)),
        format!(r#"{{"Vote":{{"vote":{},"last_log_id":{}}}}}"#, vote(1, true), log_id(1, high)),
        format!(r#"{{"Append":{{"vote":{},"prev_log_id":null,"entries":[],"leader_commit":null}}}}"#, vote(high, true)),
        format!(
            r#"{{"Append":{{"vote":{},"prev_log_id":null,"entries":[{{"log_id":{},"payload":"Blank"}}],"leader_commit":null}}}}"#,
            vote(1 << 40, true),
            log_id(1, 7)
        ),
        format!(
            r#"{{"Snapshot":{{"vote":{},"meta":{{"last_log_id":{},"last_membership":{membership},"snapshot_id":""}},"cluster":null}}}}"#,
            vote(1 << 40, true),
            log_id(1, 7)
        ),
        format!(
            r#"{{"CarryOut":{{"Begin":{{"map":{},"carried_out":[]}}}}}}"#,
            serde_json::to_string(&map).expect("JSON")
        ),
    ];
    for at in 0..COUNT {
        for body in &bodies {
            let mut connection = NodeConnection::connect(controllers.router(at)).await;
            connection.hello(cluster, Caller::Controller).await;
            assert!(matches!(connection.receive().await, Received::Welcome(_)));
            let mut bytes = Vec::new();
            append_message(&mut bytes, Kind::Consensus, 1, |b| b.extend_from_slice(body.as_bytes()));
            connection.stream.write_all(&bytes).await.expect("sent");
            let answer = connection.answer_of_controller().await;
            let shown = &body[..body.len().min(100)];
            assert!(answer.contains("this makes no sense"), "{shown}: {answer}");
        }
    }
    controllers.register(1, &controllers.changed("n0", 1)).await;
}

#[tokio::test]
async fn an_only_controller_takes_no_others() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &[])).await;
    let mut connection = NodeConnection::connect(&router).await;
    connection.hello(None, Caller::Controller).await;
    let Received::Refusal(error) = connection.receive().await else { panic!("a refusal") };
    assert!(error.code == ErrorCode::BadFrame && error.message.contains("the only controller"), "{error:?}");
    let mut node = NodeConnection::open(&router).await;
    let mut bytes = Vec::new();
    append_message(&mut bytes, Kind::Consensus, 1, |b| codec::encode_into(b, &1u8));
    node.stream.write_all(&bytes).await.expect("sent");
    assert!(matches!(node.receive().await, Received::Refusal(_)), "from a node either");
}
