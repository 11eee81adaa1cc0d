//! Requests that succeed, wherever they have to go for it.

use crate::{FAR, bounded, client_of, fake::*, patient};
use kv_client::{
    Client, Error, PutOptions, Written,
    proto::{
        error_code::{ErrorCode, Outcome, WireError},
        ids::{ClusterId, DiskId, ExecutorIndex, MapVersion, NodeId, PartitionId},
        request::{AdminCommand, Condition, Operation},
        response::Response,
        stats::NodeStats,
    },
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

#[tokio::test]
async fn every_operation_gets_its_answer() {
    bounded(async {
        let node = FakeNode::start("a", |id, operation| match operation {
            Operation::Get { key: b"there" } => answer(
                id,
                &Response::Value {
                    at: AT,
                    version: version(3),
                    expires_in_ms: None,
                    content_type: "text/plain",
                    value: b"v",
                },
            ),
            Operation::Put { key: b"there", condition: Condition::Absent, .. } => {
                answer(id, &Response::ConditionFailed { at: AT, current: Some(version(3)) })
            }
            Operation::Put { .. } | Operation::Delete { key: b"there", .. } => written(id),
            Operation::Stats => answer(id, &Response::Stats(Box::new(stats("a")))),
            Operation::Admin(AdminCommand::Handoff { partition: PartitionId(0), to: None }) => {
                answer(id, &Response::Accepted { at: AT })
            }
            Operation::Admin(_) => answer(id, &Response::Error(WireError::new(ErrorCode::NotInSync, "nobody is"))),
            _ => answer(id, &Response::Missing { at: AT }),
        })
        .await;
        let client = client_of(&node).build().expect("valid");
        let done = Written { version: version(1), at: AT };
        let entry = client.get(b"there").await.expect("answered").expect("there");
        assert_eq!((entry.value.as_ref(), entry.content_type.as_str()), (b"v".as_slice(), "text/plain"));
        assert_eq!((entry.version, entry.at), (version(3), AT));
        assert_eq!(client.get(b"missing").await, Ok(None));
        assert_eq!(client.put(b"k", b"v").await, Ok(done));
        assert_eq!(client.delete(b"there").await, Ok(Some(done)));
        assert_eq!(client.delete(b"missing").await, Ok(None));
        let options = PutOptions { condition: Condition::Absent, ..PutOptions::default() };
        let failed = Err(Error::ConditionFailed { at: AT, current: Some(version(3)) });
        assert_eq!(client.put_with(b"there", b"v", options).await, failed);
        assert_eq!(client.node_stats(node.id).await, Ok(stats("a")));
        let stranger = NodeId::new("stranger").expect("valid");
        assert_eq!(client.node_stats(stranger).await, Err(Error::UnknownNode { node: stranger }));
        let partition = PartitionId(0);
        assert_eq!(client.admin(AdminCommand::Handoff { partition, to: None }).await, Ok(AT));
        let refused = client.admin(AdminCommand::Drop { partition, node: stranger }).await.expect_err("refused");
        assert_eq!((refused.code(), refused.outcome()), ("not_in_sync", Outcome::NotApplied));
        let nowhere = AdminCommand::Handoff { partition: PartitionId(4096), to: None };
        assert_eq!(client.admin(nowhere).await, Err(Error::NoLeader { partition: PartitionId(4096) }));
    })
    .await;
}

fn stats(node: &str) -> NodeStats {
    let node = NodeId::new(node).expect("valid");
    NodeStats {
        node,
        disk: DiskId(1),
        uptime_s: 1,
        connections: 1,
        requests: 1,
        memory_bytes: 1,
        max_memory_bytes: None,
        generation: 1,
        log_bytes: 0,
        disk_full: false,
        replicas: Vec::new(),
    }
}

#[tokio::test]
async fn many_callers_share_one_connection_and_answers_come_in_any_order() {
    bounded(async {
        const CALLERS: usize = 200;
        let held = Mutex::new(Vec::new());
        // Holds all requests back, then answers the last one first; each value is its own key.
        let node = FakeNode::start("a", move |id, operation| {
            let mut held = held.lock().expect("not poisoned");
            held.push((id, operation.key().expect("a get").to_vec()));
            if held.len() < CALLERS {
                return Act::Ignore;
            }
            let answers = held.drain(..).rev().map(|(id, key)| {
                match answer(
                    id,
                    &Response::Value {
                        at: AT,
                        version: version(1),
                        expires_in_ms: None,
                        content_type: "",
                        value: &key,
                    },
                ) {
                    Act::Send(bytes) => bytes,
                    Act::Ignore | Act::Cut => unreachable!("answers are sent"),
                }
            });
            Act::Send(answers.flatten().collect())
        })
        .await;
        let client = client_of(&node).build().expect("valid");
        let callers: Vec<_> = (0..CALLERS)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move { (i, client.get(format!("key {i}").as_bytes()).await) })
            })
            .collect();
        for caller in callers {
            let (i, entry) = caller.await.expect("no panic");
            assert_eq!(entry.expect("answered").expect("there").value, format!("key {i}"));
        }
        assert_eq!(node.hellos().len(), 1);
    })
    .await;
}

/// What callers append while the socket is full must leave once it is not, though no answer and no other caller wakes
/// the connection.
#[tokio::test]
async fn requests_behind_a_full_socket_leave_when_the_node_reads_on() {
    bounded(async {
        const LARGE: usize = 7;
        let held = Mutex::new(Vec::new());
        // Answers nothing before it has everything.
        let node = FakeNode::start("a", move |id, operation| {
            let mut held = held.lock().expect("not poisoned");
            if operation.key() == Some(b"first") {
                return written(id);
            }
            held.push(id);
            if held.len() <= LARGE {
                return Act::Ignore;
            }
            let answers = held.drain(..).map(|id| match written(id) {
                Act::Send(bytes) => bytes,
                Act::Ignore | Act::Cut => unreachable!("answers are sent"),
            });
            Act::Send(answers.flatten().collect())
        })
        .await;
        let client = client_of(&node).build().expect("valid");
        client.put(b"first", b"").await.expect("connected");
        node.read(false);
        let settle = || async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        let put = |value: Vec<u8>| {
            let client = client.clone();
            tokio::spawn(async move { client.put(b"k", &value).await })
        };
        let mut callers: Vec<_> = (0..LARGE).map(|_| put(vec![7; 1024 * 1024])).collect();
        settle().await;
        callers.push(put(vec![7]));
        settle().await;
        node.read(true);
        for caller in callers {
            caller.await.expect("no panic").expect("written");
        }
    })
    .await;
}

#[tokio::test]
async fn a_redirect_is_followed_and_remembered() {
    bounded(async {
        let redirect = |id, _: &Operation<'_>| {
            let mut wire = WireError::new(ErrorCode::NotLeader, "b leads");
            wire.configuration = Some(Box::new((PartitionId(0), configuration(2, "b"))));
            error(id, wire)
        };
        let old = FakeNode::start("a", redirect).await;
        let new = FakeNode::start("b", |id, _| written(id)).await;
        let map = map(&[("a", &old.address), ("b", &new.address)], &["a"]);
        old.set_view(&map, &[]);
        new.set_view(&map, &[]);
        let client = patient().map(map).build().expect("valid");
        for _ in 0..3 {
            client.put(b"k", b"v").await.expect("redirected");
        }
        assert_eq!((old.operations().len(), new.operations().len()), (1, 3));
        assert_eq!(client.map().expect("known").configuration(PartitionId(0)), Some(&configuration(2, "b")));
    })
    .await;
}

#[tokio::test]
async fn nodes_that_send_each_other_the_client_end_its_patience() {
    bounded(async {
        let not_leader = |id, _: &Operation<'_>| error(id, WireError::new(ErrorCode::NotLeader, "who knows"));
        let node = FakeNode::start("a", not_leader).await;
        let client = client_of(&node).build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("nobody leads");
        assert_eq!((error.code(), error.outcome(), error.is_retryable()), ("not_leader", Outcome::NotApplied, true));
        assert_eq!(node.operations().len(), 5);
    })
    .await;
}

#[tokio::test]
async fn what_passes_is_asked_again_and_what_lasts_is_told() {
    bounded(async {
        for (code, asked) in [
            (ErrorCode::NotReady, 2),
            (ErrorCode::ShuttingDown, 2),
            (ErrorCode::FollowerUnreachable, 1),
            (ErrorCode::Overloaded, 1),
            (ErrorCode::OutcomeUnknown, 2),
        ] {
            let count = AtomicUsize::new(0);
            let node = FakeNode::start("a", move |id, _| match count.fetch_add(1, SeqCst) {
                0 => error(id, WireError::new(code, "at first")),
                _ => written(id),
            })
            .await;
            let client = client_of(&node).build().expect("valid");
            let result = client.put(b"k", b"v").await;
            assert_eq!(node.operations().len(), asked, "{code}");
            match asked {
                1 => assert_eq!(result.expect_err("told").error_code(), Some(code)),
                _ => assert_eq!(result, Ok(Written { version: version(1), at: AT }), "{code}"),
            }
        }
    })
    .await;
}

#[tokio::test]
async fn requests_go_to_the_executor_that_owns_the_partition() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let map = map(&[("a", &node.address)], &["a"]);
        node.set_view(&map, &[(0, 1)]);
        let client = patient().map(map).build().expect("valid");
        for _ in 0..3 {
            client.put(b"k", b"v").await.expect("written");
        }
        let executors: Vec<_> = node.hellos().iter().map(|h| h.executor).collect();
        assert_eq!(executors, [Some(ExecutorIndex(0)), Some(ExecutorIndex(1))], "the first asks, the rest know");
        assert!(node.hellos().iter().all(|h| h.cluster == Some(CLUSTER)));
    })
    .await;
}

#[tokio::test]
async fn a_node_with_fewer_executors_than_it_had_is_still_reached() {
    bounded(async {
        // It welcomes a caller for executor 1 on executor 0 in one case, and refuses it in the other.
        for refuses in [false, true] {
            let on_hello = move |hello: &kv_client::proto::hello::Hello| match hello.executor {
                Some(ExecutorIndex(1)) if refuses => refusal(ErrorCode::BadFrame, "there is no executor 1"),
                _ => Act::Send(message(
                    kv_client::proto::frame::Kind::Welcome,
                    0,
                    &kv_client::proto::codec::encode(&welcome("a", 0)),
                )),
            };
            let node = FakeNode::start_at("a", "127.0.0.1:0", on_hello, |id, _| written(id)).await;
            let map = map(&[("a", &node.address)], &["a"]);
            node.set_view(&map, &[(0, 1)]);
            let client = patient().map(map.clone()).build().expect("valid");
            client.put(b"k", b"v").await.expect("over the first executor");
            let second = client.put(b"k", b"v").await;
            assert_eq!(second.is_err(), refuses, "{second:?}");
            client.put(b"k", b"v").await.expect("over the first executor");
        }
    })
    .await;
}

#[tokio::test]
async fn seeds_tell_the_map_even_if_some_are_gone() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let map = map(&[("a", &node.address)], &["a"]);
        node.set_view(&map, &[]);
        let gone = FakeNode::start("b", |_, _| Act::Cut).await.stop().await;
        let seed = format!("kv://{}", node.address);
        let client = patient().seed(gone.as_str()).seed(seed).build().expect("valid");
        assert_eq!(client.map(), None);
        let puts = (0..20).map(|_| client.clone()).map(|c| tokio::spawn(async move { c.put(b"k", b"v").await }));
        for put in puts.collect::<Vec<_>>() {
            put.await.expect("no panic").expect("written");
        }
        assert_eq!(client.map().as_deref(), Some(&map));
        assert_eq!(node.hellos().len(), 2, "one question for all callers, then one connection");
    })
    .await;
}

#[tokio::test]
async fn maps_are_taken_from_the_outside() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let told = map(&[("a", &node.address)], &["a"]);
        node.set_view(&told, &[]);
        let client = patient().build().expect("valid");
        let error = client.put(b"k", b"v").await.expect_err("whom to ask?");
        assert_eq!((error.code(), error.outcome(), error.is_retryable()), ("no_map", Outcome::NotApplied, true));
        client.update_map(told.clone());
        client.put(b"k", b"v").await.expect("written");
        let mut other = told.clone();
        (other.cluster, other.version) = (ClusterId(8), MapVersion(9));
        client.update_map(other);
        assert_eq!(client.map().as_deref(), Some(&told));
    })
    .await;
}

#[tokio::test]
async fn a_node_that_comes_back_is_found_again() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let client = client_of(&node).build().expect("valid");
        client.put(b"k", b"v").await.expect("written");
        let map = client.map().expect("known");
        let address = node.stop().await;
        // Until the client has seen the connection end, a write may meet its end: unknown. Then none is made.
        while client.put(b"k", b"v").await.expect_err("nobody listens").code() != "unreachable" {}
        let on_hello = |_: &kv_client::proto::hello::Hello| {
            let body = kv_client::proto::codec::encode(&welcome("a", 0));
            Act::Send(message(kv_client::proto::frame::Kind::Welcome, 0, &body))
        };
        let node = FakeNode::start_at("a", &address, on_hello, |id, _| written(id)).await;
        node.set_view(&map, &[(0, 0)]);
        // The backoff decides when the next attempt is made; until then the answer is that of the last one.
        while client.put(b"k", b"v").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dropped_request_leaves_nothing_behind() {
    bounded(async {
        let first = Arc::new(Mutex::new(None));
        let asked = Arc::new(tokio::sync::Notify::new());
        let (late, notify) = (Arc::clone(&first), Arc::clone(&asked));
        // Answers the first request, by its id, only together with the second one.
        let node = FakeNode::start("a", move |id, operation| {
            let mut late = late.lock().expect("not poisoned");
            if late.is_none() {
                *late = Some(id);
                notify.notify_one();
                return Act::Ignore;
            }
            let Act::Send(mut bytes) = answer(late.expect("just seen"), &Response::Pong) else {
                unreachable!("answers are sent")
            };
            if let (Act::Send(more), Operation::Get { .. }) = (answer(id, &Response::Missing { at: AT }), operation) {
                bytes.extend(more);
            }
            Act::Send(bytes)
        })
        .await;
        let client = client_of(&node).max_in_flight(2).deadline(FAR).build().expect("valid");
        tokio::select! {
            answer = client.get(b"dropped") => panic!("{answer:?}"),
            () = asked.notified() => {}
        }
        assert_eq!(client.get(b"second").await, Ok(None), "the late answer is not taken for this one's");
    })
    .await;
}

#[tokio::test]
async fn dropping_the_client_closes_its_connections() {
    bounded(async {
        let node = FakeNode::start("a", |id, _| written(id)).await;
        let client = client_of(&node).build().expect("valid");
        client.put(b"k", b"v").await.expect("written");
        assert_eq!(node.open_connections(), 1);
        drop::<Client>(client);
        while node.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
