//! The controller's port, byte by byte.

use crate::{
    cluster::{Cluster, NodeConnection, Received, Running, options},
    fake_node::{DISK, FakeNode},
    http::Http,
};
use kv_proto::{
    codec,
    control::{Change, FromController, Proposal, ToController},
    error_code::ErrorCode,
    frame::{Kind, append_message},
    hello::{Caller, Hello},
    ids::{ClusterId, DiskId, Epoch, HistoryId, Member, NodeId, PartitionId},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

async fn refusal(connection: &mut NodeConnection) -> (ErrorCode, String) {
    match connection.receive().await {
        Received::Refusal(error) => {
            assert!(matches!(connection.receive().await, Received::End), "a refusal is the last word");
            (error.code, error.message)
        }
        other => panic!("{other:?} instead of a refusal"),
    }
}

#[tokio::test]
async fn strangers_are_told_what_they_did_wrong() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &[])).await;
    let mut request = Vec::new();
    append_message(&mut request, Kind::Request, 1, |b| b.extend_from_slice(b"x"));
    let mut early = Vec::new();
    append_message(&mut early, Kind::ToController, 1, |b| codec::encode_into(b, &ToController::Ping));
    let mut bad_hello = Vec::new();
    append_message(&mut bad_hello, Kind::Hello, 1, |b| b.extend_from_slice(&[0xff; 20]));
    let mut long_hello = Vec::new();
    append_message(&mut long_hello, Kind::Hello, 1, |b| b.extend_from_slice(&[0; 5000]));
    let mut other_version = early.clone();
    other_version[2] = 9;
    let mut flipped = early.clone();
    flipped[20] ^= 1;
    for (bytes, code, text) in [
        (&b"*1\r\n$4\r\nPING\r\n"[..], ErrorCode::BadFrame, "not a frame"),
        (&request, ErrorCode::BadFrame, "begins with a hello"),
        (&early, ErrorCode::BadFrame, "begins with a hello"),
        (&bad_hello, ErrorCode::BadFrame, "malformed message"),
        (&long_hello, ErrorCode::BadFrame, "more than 4096 bytes"),
        (&other_version, ErrorCode::UnsupportedVersion, "protocol version 9"),
        (&flipped, ErrorCode::BadFrame, "checksum"),
    ] {
        let mut connection = NodeConnection::connect(&router).await;
        connection.stream.write_all(bytes).await.expect("sent");
        let (got, message) = refusal(&mut connection).await;
        assert!(got == code && message.contains(text), "{got} {message}");
    }
    let mut http = Http::connect(router.controller).await;
    http.send(b"GET /get?key=a HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut answer = String::new();
    http.stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("this is the controller's port"), "{answer}");
}

#[tokio::test]
async fn only_nodes_of_this_cluster_are_welcome() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &[])).await;
    let peer = Caller::Peer { node: NodeId::new("n").expect("a node id"), disk: DISK };
    for (cluster, caller, code, text) in [
        (None, Caller::Client, ErrorCode::BadFrame, "only nodes register"),
        (None, peer, ErrorCode::BadFrame, "only nodes register"),
        (Some(ClusterId(1)), Caller::Node, ErrorCode::WrongCluster, "point --controller at"),
    ] {
        let mut connection = NodeConnection::connect(&router).await;
        connection.hello(cluster, caller).await;
        let (got, message) = refusal(&mut connection).await;
        assert!(got == code && message.contains(text), "{got} {message}");
    }
    let mut connection = NodeConnection::connect(&router).await;
    connection.hello(None, Caller::Node).await;
    let Received::Welcome(welcome) = connection.receive().await else { panic!("a welcome") };
    assert_eq!(welcome.node.as_str(), "router");
    let mut again = NodeConnection::connect(&router).await;
    again.hello(welcome.cluster, Caller::Node).await;
    assert!(matches!(again.receive().await, Received::Welcome(_)));
    again.hello(None, Caller::Node).await;
    assert_eq!(refusal(&mut again).await.0, ErrorCode::BadFrame);
}

#[tokio::test]
async fn nodes_register_and_are_told_every_change() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &["--replicas", "2", "--shards", "1"])).await;
    let fake = FakeNode::start().await;
    let (mut one, mut two) = (NodeConnection::open(&router).await, NodeConnection::open(&router).await);
    assert_eq!(one.ask(&ToController::Ping).await, FromController::Pong);
    let map = one.register(fake.node("n0")).await;
    assert!(!map.is_complete());
    let told = two.register(fake.node("n1")).await;
    assert!(told.is_complete());
    assert_eq!(one.map().await, told, "who was there before is told, unasked");
    let answer = two.ask(&ToController::Register { cluster: Some(told.cluster), node: fake.node("n1") }).await;
    assert_eq!(answer, FromController::Registered { cluster: told.cluster });

    for (cluster, node, text) in [
        (Some(ClusterId(1)), fake.node("n1"), "holds data of cluster"),
        (None, fake.node("n2"), "shard 0 has its 2 replicas already (n0, n1)"),
    ] {
        let mut connection = NodeConnection::open(&router).await;
        let answer = connection.ask(&ToController::Register { cluster, node }).await;
        let FromController::Refused(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains(text), "{why}");
    }
}

#[tokio::test]
async fn a_name_belongs_to_one_process_at_a_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &["--replicas", "2", "--shards", "1"])).await;
    let fake = FakeNode::start().await;
    let mut first = NodeConnection::open(&router).await;
    first.register(fake.node("n0")).await;
    let stranger = || ToController::Register {
        cluster: None,
        node: kv_proto::cluster_map::Node { disk: DiskId(8), ..fake.node("n0") },
    };
    let mut second = NodeConnection::open(&router).await;
    let answer = second.ask(&stranger()).await;
    let FromController::Refused(why) = answer else { panic!("{answer:?}") };
    assert!(why.contains("another process is registered as n0"), "{why}");

    drop(first);
    let registered = async {
        // The end of the first connection may be noticed a moment after its close.
        while !matches!(second.ask(&stranger()).await, FromController::Registered { .. }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), registered).await.expect("the name is free again");
}

#[tokio::test]
async fn proposals_are_made_in_ones_own_name() {
    let mut cluster = Cluster::start().await;
    let own = Member { node: NodeId::new("n0").expect("a node id"), disk: DISK };
    let proposal = |id, epoch, change| Proposal { id, partition: PartitionId(3), epoch: Epoch(epoch), change };
    let other = Member { disk: DiskId(8), ..own };
    let reopen = proposal(1, 1, Change::Reopen { leader: own });
    let node = &mut cluster.registered;
    let decided = node
        .ask(&ToController::Propose(vec![
            proposal(2, 1, Change::Reopen { leader: other }),
            reopen.clone(),
            proposal(3, 0, Change::Create { history: HistoryId(1), leader: own, in_sync: vec![] }),
            proposal(4, 1, Change::Reopen { leader: own }),
            proposal(5, 2, Change::ForceRecover { leader: own, history: HistoryId(1) }),
        ]))
        .await;
    let FromController::Decided(decided) = decided else { panic!("{decided:?}") };
    let texts: Vec<_> = decided.iter().map(|d| d.as_deref().unwrap_or("carried out")).collect();
    assert!(texts[0].contains("cannot propose in the name of"), "{texts:?}");
    assert_eq!(texts[1], "carried out");
    assert!(texts[2].contains("no node may ask for this"), "{texts:?}");
    assert_eq!(texts[3], "the proposal replaces epoch 1, but the partition is in epoch 2");
    assert!(texts[4].contains("no node may ask for this"), "{texts:?}");
    assert_eq!(node.map().await.configuration(PartitionId(3)).map(|c| c.epoch), Some(Epoch(2)));
    let again = node.ask(&ToController::Propose(vec![reopen])).await;
    assert_eq!(again, FromController::Decided(vec![None]), "sent again, it is found to be carried out");

    let mut stranger = NodeConnection::open(&cluster.router).await;
    stranger.send(&ToController::Propose(vec![])).await;
    let (code, message) = refusal(&mut stranger).await;
    assert!(code == ErrorCode::BadFrame && message.contains("registers before it proposes"), "{message}");
}

/// The maps of 4,096 partitions are larger than what sockets hold, so that they can only wait at the controller.
#[tokio::test]
async fn who_reads_slowly_gets_the_newest_map_and_not_all_of_them() {
    let dir = tempfile::tempdir().expect("a folder");
    let more = ["--replicas", "2", "--shards", "1", "--partitions", "4096"];
    let router = Running::start(options(&dir, &more)).await;
    let fake = FakeNode::start().await;
    let (mut slow, mut busy) = (NodeConnection::open_slow(&router).await, NodeConnection::open(&router).await);
    slow.register(fake.node("n0")).await;
    busy.register(fake.node("n1")).await;
    let mut last = 0;
    for port in 1..=16 {
        let mut node = fake.node("n1");
        node.address = format!("127.0.0.1:{port}");
        last = busy.register(node).await.version.0;
    }
    let mut maps = 0;
    loop {
        maps += 1;
        if slow.map().await.version.0 == last {
            break;
        }
    }
    assert!(maps < 16, "{maps} maps were sent");
}

#[tokio::test]
async fn who_is_silent_is_given_up() {
    let mut cluster = Cluster::start().await;
    tokio::time::pause();
    let start = Instant::now();
    let mut silent = NodeConnection::connect(&cluster.router).await;
    assert!(matches!(silent.receive().await, Received::End));
    assert_eq!(start.elapsed().as_secs(), 5, "before the hello");
    assert!(matches!(cluster.registered.receive().await, Received::End));
    assert_eq!(start.elapsed().as_secs(), 10, "a node pings more often");
}

fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append_message(&mut bytes, kind, 1, |b| b.extend_from_slice(body));
    bytes
}

#[tokio::test]
async fn who_does_not_register_in_time_is_given_up_whatever_it_sends() {
    let dir = tempfile::tempdir().expect("a folder");
    let router = Running::start(options(&dir, &[])).await;
    let node = FakeNode::start().await.node("n0");
    let hello = message(Kind::Hello, &codec::encode(&Hello { cluster: None, caller: Caller::Node, executor: None }));
    let register = message(Kind::ToController, &codec::encode(&ToController::Register { cluster: None, node }));
    let ping = message(Kind::ToController, &codec::encode(&ToController::Ping));
    tokio::time::pause();
    for (what, pieces, seconds) in [
        ("a hello, byte by byte", hello.chunks(1).collect(), 5),
        ("a hello, and pings", [vec![&hello[..]], vec![&ping[..]; 20]].concat(), 5),
        ("a registration, and pings", [vec![&hello[..], &register[..]], vec![&ping[..]; 20]].concat(), 22),
    ] {
        let (mut connection, start) = (NodeConnection::connect(&router).await, Instant::now());
        for piece in pieces {
            // It may be closed already, which the read sees.
            let _ = connection.stream.write_all(piece).await;
            if timeout(Duration::from_secs(1), connection.stream.read_to_end(&mut Vec::new())).await.is_ok() {
                break;
            }
        }
        assert_eq!(start.elapsed().as_secs(), seconds, "{what}");
    }
}
