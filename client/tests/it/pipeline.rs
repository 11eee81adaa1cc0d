//! The low-level face.

use crate::{FAR, bounded, fake::*};
use kv_client::{
    Address, ConnectOptions, Error, Pipeline,
    proto::{
        error_code::{ErrorCode, Outcome},
        ids::ExecutorIndex,
        request::{Condition, Operation, Request},
        response::Response,
    },
};

fn options() -> ConnectOptions {
    ConnectOptions { timeout: FAR, ..ConnectOptions::default() }
}

fn address(node: &FakeNode) -> Address {
    node.address.parse().expect("valid")
}

fn get(key: &[u8]) -> Request<'_> {
    Request { deadline_ms: 60_000, operation_id: None, operation: Operation::Get { key } }
}

#[tokio::test]
async fn a_batch_goes_out_and_its_answers_come_back_by_id() {
    bounded(async {
        let node = FakeNode::start("a", |id, operation| {
            let value = operation.key().expect("a get");
            answer(id, &Response::Value { at: AT, version: version(id), expires_in_ms: None, content_type: "", value })
        })
        .await;
        let executor = Some(ExecutorIndex(1));
        let mut pipeline =
            Pipeline::connect(&address(&node), &ConnectOptions { executor, ..options() }).await.expect("welcome");
        assert_eq!(pipeline.welcome(), &welcome("a", 1));
        assert_eq!(pipeline.receive(|_, _| panic!("nothing was asked")).await, Ok(0));
        for id in 0..1000u64 {
            pipeline.push(id, &get(&id.to_le_bytes()));
        }
        assert_eq!(pipeline.in_flight(), 1000);
        pipeline.flush().await.expect("sent");
        let mut answered = 0;
        while pipeline.in_flight() > 0 {
            let count = pipeline.receive(|id, response| match response {
                Response::Value { value, .. } => assert_eq!(value, id.to_le_bytes()),
                other => panic!("{other:?}"),
            });
            answered += count.await.expect("answered");
        }
        assert_eq!(answered, 1000);
        let view = pipeline.node_view().await.expect("told");
        assert_eq!(view.map, None);
    })
    .await;
}

/// A node writes an answer before it reads on; both sides would wait for ever if a flush did not read.
#[tokio::test]
async fn a_flush_of_more_than_all_buffers_hold_does_not_wait_for_ever() {
    bounded(async {
        let node = FakeNode::start("a", |id, operation| match operation {
            Operation::Put { value, .. } => answer(
                id,
                &Response::Value { at: AT, version: version(1), expires_in_ms: None, content_type: "", value },
            ),
            _ => Act::Ignore,
        })
        .await;
        let mut pipeline = Pipeline::connect(&address(&node), &options()).await.expect("welcome");
        let value = vec![7; 1024 * 1024];
        for id in 0..32 {
            let put =
                Operation::Put { key: b"k", value: &value, content_type: "", condition: Condition::Any, ttl_ms: None };
            pipeline.push(id, &Request { deadline_ms: 60_000, operation_id: None, operation: put });
        }
        pipeline.flush().await.expect("sent");
        let mut ids = Vec::new();
        while pipeline.in_flight() > 0 {
            let receive = pipeline.receive(|id, response| {
                assert!(matches!(response, Response::Value { value, .. } if value.len() == 1024 * 1024));
                ids.push(id);
            });
            receive.await.expect("answered");
        }
        assert_eq!(ids, (0..32).collect::<Vec<_>>());
    })
    .await;
}

#[tokio::test]
async fn errors_name_the_cause() {
    bounded(async {
        let refusing =
            FakeNode::start_at("a", "127.0.0.1:0", |_| refusal(ErrorCode::WrongCluster, "no"), |_, _| Act::Ignore)
                .await;
        let error = Pipeline::connect(&address(&refusing), &options()).await.expect_err("refused");
        assert_eq!(error.error_code(), Some(ErrorCode::WrongCluster));

        let gone: Address = refusing.stop().await.parse().expect("valid");
        let error = Pipeline::connect(&gone, &options()).await.expect_err("gone");
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

        let cutting = FakeNode::start("a", |_, _| Act::Cut).await;
        let mut pipeline = Pipeline::connect(&address(&cutting), &options()).await.expect("welcome");
        pipeline.push(1, &get(b"k"));
        pipeline.flush().await.expect("sent");
        let error = pipeline.receive(|_, _| panic!("nothing is answered")).await.expect_err("cut");
        assert_eq!((error.code(), error.outcome()), ("connection_lost", Outcome::Unknown));

        let chatty = FakeNode::start("a", |id, _| {
            let (Act::Send(one), Act::Send(two)) = (written(id), written(id)) else { unreachable!("answers are sent") };
            Act::Send([one, two].concat())
        })
        .await;
        let mut pipeline = Pipeline::connect(&address(&chatty), &options()).await.expect("welcome");
        pipeline.push(1, &get(b"k"));
        pipeline.flush().await.expect("sent");
        let error = pipeline.receive(|_, _| {}).await.expect_err("two answers to one question");
        assert!(error.to_string().contains("more answers"), "{error}");
    })
    .await;
}
