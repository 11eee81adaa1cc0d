//! What goes wrong, and what the caller is told about it.

use crate::{bounded, client_of, fake::*, patient};
use kv_client::{
    Error,
    proto::{
        error_code::{ErrorCode, Outcome},
        frame::Kind,
        request::Operation,
        response::Response,
    },
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::TcpListener};

const SOON: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_read_whose_connection_breaks_is_asked_again() {
    bounded(async {
        let count = AtomicUsize::new(0);
        let node = FakeNode::start("a", move |id, _| match count.fetch_add(1, SeqCst) {
            0 => Act::Cut,
            _ => answer(id, &Response::Missing { at: AT }),
        })
        .await;
        let client = client_of(&node).build().expect("valid");
        assert_eq!(client.get(b"k").await, Ok(None));
        assert_eq!(node.operations().len(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_node_that_refuses_connections_costs_an_error_and_not_the_deadline() {
    bounded(async {
        let node = FakeNode::start("a", |_, _| Act::Cut).await;
        let client = client_of(&node).build().expect("valid");
        node.stop().await;
        for _ in 0..20 {
            let error = client.put(b"k", b"v").await.expect_err("nobody listens");
            assert_eq!((error.code(), error.outcome()), ("unreachable", Outcome::NotApplied));
            assert!(error.is_retryable());
        }
    })
    .await;
}

#[tokio::test]
async fn a_deadline_answers_its_caller_and_the_late_answer_frees_its_place() {
    bounded(async {
        let waiting = Arc::new(Mutex::new(Vec::new()));
        let held = Arc::clone(&waiting);
        let node = FakeNode::start("a", move |id, operation| match operation {
            Operation::Stats => {
                // The way of the test to have the late answers sent.
                let late = held.lock().expect("not poisoned").drain(..).map(written).collect::<Vec<_>>();
                let bytes = late.into_iter().flat_map(|act| match act {
                    Act::Send(bytes) => bytes,
                    Act::Ignore | Act::Cut => unreachable!("answers are sent"),
                });
                Act::Send(
                    bytes
                        .chain(message(Kind::Response, id, &kv_client::proto::codec::encode(&Response::Pong)))
                        .collect(),
                )
            }
            _ => {
                held.lock().expect("not poisoned").push(id);
                Act::Ignore
            }
        })
        .await;
        let client = client_of(&node).max_in_flight(3).deadline(SOON).build().expect("valid");
        // The node answers this with nonsense, and with whatever it holds back; on a slow machine not at once.
        let release =
            || async { while client.node_stats(node.id).await.expect_err("nonsense").code() != "protocol_error" {} };
        release().await;
        let error = client.put(b"k", b"v").await.expect_err("silent");
        assert_eq!((error.code(), error.outcome()), ("deadline_exceeded", Outcome::Unknown));
        let error = client.get(b"k").await.expect_err("silent");
        assert_eq!((error.code(), error.outcome()), ("deadline_exceeded", Outcome::NotApplied));
        assert!(error.is_retryable());
        // Two of three places are taken until the late answers come; had they not been freed, two of the next three
        // requests would find none.
        release().await;
        for _ in 0..3 {
            assert_eq!(client.get(b"k").await.expect_err("silent").code(), "deadline_exceeded");
        }
        let error = client.put(b"k", b"v").await.expect_err("no place");
        assert_eq!((error.code(), error.outcome(), error.is_retryable()), ("client_busy", Outcome::NotApplied, true));
        assert_eq!(node.hellos().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_node_that_is_silent_is_given_up_before_the_deadline() {
    bounded(async {
        let node = FakeNode::start("a", |_, _| Act::Ignore).await;
        let client = client_of(&node).heartbeat(SOON, SOON).build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("silent");
        assert_eq!((error.code(), error.outcome()), ("connection_lost", Outcome::Unknown));
        assert!(error.to_string().contains("silent"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_node_that_answers_pings_is_waited_for() {
    bounded(async {
        let pings = Arc::new(AtomicUsize::new(0));
        let held = Mutex::new(0);
        let seen = Arc::clone(&pings);
        // Answers the write only after many pings.
        let node = FakeNode::start("a", move |id, operation| match operation {
            Operation::Ping => {
                let Act::Send(mut bytes) = answer(id, &Response::Pong) else { unreachable!("answers are sent") };
                if seen.fetch_add(1, SeqCst) == 5 {
                    let Act::Send(more) = written(*held.lock().expect("not poisoned")) else {
                        unreachable!("answers are sent")
                    };
                    bytes.extend(more);
                }
                Act::Send(bytes)
            }
            _ => {
                *held.lock().expect("not poisoned") = id;
                Act::Ignore
            }
        })
        .await;
        let client = client_of(&node).heartbeat(Duration::from_millis(5), crate::FAR).build().expect("valid");
        client.put(b"k", b"v").await.expect("written at last");
        assert!(pings.load(SeqCst) > 5);
    })
    .await;
}

#[tokio::test]
async fn bytes_that_no_node_sends_break_the_connection_and_nothing_else() {
    let id_of_nobody = message(Kind::Response, 12345, &kv_client::proto::codec::encode(&Response::Pong));
    let oversized = message(Kind::Response, 0, &vec![0; 2 * 1024 * 1024]);
    let refused = {
        let Act::Send(bytes) = refusal(ErrorCode::ShuttingDown, "bye") else { unreachable!("refusals are sent") };
        bytes
    };
    for (name, bytes, said) in [
        ("garbage", vec![0xAA; 100], "not a frame"),
        ("another protocol", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "not a frame"),
        ("a frame over the limit", oversized, "more than"),
        ("a body that is no response", message(Kind::Response, 0, &[0xFF; 9]), "malformed"),
        ("a frame of another kind", message(Kind::Replication, 0, b""), "no client expects"),
        ("an answer that nobody waits for", id_of_nobody, "does not wait"),
        (
            "a pong without a ping",
            message(Kind::Response, u64::MAX, &kv_client::proto::codec::encode(&Response::Pong)),
            "ping",
        ),
        ("a refusal", refused, "bye"),
    ] {
        bounded(async {
            let node = FakeNode::start("a", move |_, _| Act::Send(bytes.clone())).await;
            let client = client_of(&node).build().expect("valid");
            let error = client.put(b"k", b"v").await.expect_err(name);
            assert_eq!((error.code(), error.outcome()), ("connection_lost", Outcome::Unknown), "{name}");
            assert!(error.to_string().contains(said), "{name}: {error}");
        })
        .await;
    }
}

#[tokio::test]
async fn an_answer_of_another_operation_is_an_error() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| answer(id, &Response::Pong)).await;
        let client = client_of(&node).build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("a pong");
        assert_eq!((error.code(), error.outcome()), ("protocol_error", Outcome::Unknown));
        assert_eq!(client.get(b"k").await.expect_err("a pong").outcome(), Outcome::NotApplied);
    })
    .await;
}

#[tokio::test]
async fn a_greeting_that_is_refused_says_why() {
    bounded(async {
        for code in [ErrorCode::WrongCluster, ErrorCode::TooManyConnections, ErrorCode::UnsupportedVersion] {
            let node =
                FakeNode::start_at("a", "127.0.0.1:0", move |_| refusal(code, "go away"), |_, _| Act::Ignore).await;
            let client = client_of(&node).build().expect("valid");
            let error = client.put(b"k", b"v").await.expect_err("refused");
            assert_eq!((error.error_code(), error.outcome()), (Some(code), Outcome::NotApplied));
            assert!(error.to_string().contains("go away"), "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn another_node_at_the_address_is_not_taken_for_the_leader() {
    bounded(async {
        let node = FakeNode::start("stranger", |id, _| written(id)).await;
        let client = patient().map(map(&[("a", &node.address)], &["a"])).build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("not the leader");
        assert_eq!((error.code(), error.outcome()), ("unreachable", Outcome::NotApplied));
        assert!(error.to_string().contains("stranger"), "{error}");
        assert!(node.operations().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_greeting_that_is_not_answered_ends_with_the_connect_timeout() {
    bounded(async {
        let node = FakeNode::start_at("a", "127.0.0.1:0", |_| Act::Ignore, |_, _| Act::Ignore).await;
        let client = client_of(&node).connect_timeout(SOON).build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("no welcome");
        assert_eq!((error.code(), error.outcome()), ("unreachable", Outcome::NotApplied));
    })
    .await;
}

#[tokio::test]
async fn a_server_of_another_protocol_is_named_as_such() {
    bounded(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind a port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("the client reads");
        });
        let client = patient().seed(address).build().expect("valid");
        let error = client.get(b"k").await.expect_err("not a node");
        assert_eq!(error.code(), "no_map");
        assert!(error.to_string().contains("binary port"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_seed_without_a_map_says_what_is_missing() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let client = patient().seed(node.address.as_str()).build().expect("valid");
        let error = client.get(b"k").await.expect_err("no map");
        assert!(matches!(error, Error::NoMap { .. }) && error.to_string().contains("controller"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_partition_without_a_configuration_has_no_leader() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let mut map = map(&[("a", &node.address)], &["a"]);
        map.partitions[0].configuration = None;
        let client = patient().map(map).build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("no leader");
        assert_eq!((error.code(), error.is_retryable()), ("no_leader", true));
    })
    .await;
}

#[tokio::test]
async fn what_the_node_would_refuse_is_refused_before_it_is_sent() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let client = client_of(&node).build().expect("valid");
        let large = vec![0; 1024 * 1024 + 1];
        let refused = [
            client.put(b"", b"v").await,
            client.put(&[b'k'; 4097], b"v").await,
            client.put(b"k", &large).await,
            client.put(b"k", &vec![0; 17 * 1024 * 1024]).await,
        ];
        let codes: Vec<_> = refused.iter().map(|r| r.as_ref().expect_err("over a limit").code()).collect();
        assert_eq!(codes, ["key_empty", "key_too_large", "value_too_large", "value_too_large"]);
        client.put(b"k", &large[1..]).await.expect("as large as it may be");
        assert_eq!((node.operations().len(), node.hellos().len()), (1, 1));
    })
    .await;
}

#[test]
fn seeds_are_checked_when_the_client_is_built() {
    let error = kv_client::Client::builder().seed("http://127.0.0.1:5000").build().expect_err("not a node's");
    assert_eq!(error.code(), "invalid_address");
}
