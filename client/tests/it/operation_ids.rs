//! A write is asked for again under the same id until somebody says what became of it.

use crate::{bounded, client_of, fake::*, patient};
use kv_client::{
    Client, Error, Written,
    proto::{
        error_code::{ErrorCode, Outcome, WireError},
        ids::{Lsn, OperationId, PartitionId},
        request::Operation,
        response::Response,
    },
};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// A node that does one of these after the other.
async fn node_that(acts: impl Fn(usize, u64) -> Act + Send + Sync + 'static) -> FakeNode {
    let count = AtomicUsize::new(0);
    FakeNode::start("a", move |id, _| acts(count.fetch_add(1, SeqCst), id)).await
}

fn refused(id: u64, code: ErrorCode) -> Act {
    error(id, WireError::new(code, "told"))
}

fn too_old(id: u64, lsn: u64) -> Act {
    answer(id, &Response::TooOld { at: AT, committed: version(lsn) })
}

fn ids(node: &FakeNode) -> Vec<OperationId> {
    node.operation_ids().into_iter().map(|id| id.expect("a write has an id")).collect()
}

async fn put(client: &Client) -> Result<Written, Error> {
    client.put(b"k", b"v").await
}

const DONE: Result<Written, Error> = Ok(Written {
    version: kv_client::proto::ids::Version { history: kv_client::proto::ids::HistoryId(0), lsn: Lsn(1) },
    at: AT,
});

#[tokio::test]
async fn a_write_whose_connection_breaks_is_asked_for_again_with_its_id() {
    bounded(async {
        let node = node_that(|count, id| if count % 2 == 0 { Act::Cut } else { written(id) }).await;
        let client = client_of(&node).build().expect("valid");
        assert_eq!(put(&client).await, DONE);
        assert_eq!(client.delete(b"k").await, DONE.map(Some));
        let ids = ids(&node);
        assert_eq!((ids.len(), ids[0], ids[2]), (4, ids[1], ids[3]));
        assert_eq!(ids[2], OperationId { sequence: ids[0].sequence + 1, known_lsn: Lsn(1), ..ids[0] });
    })
    .await;
}

#[tokio::test]
async fn what_costs_every_connection_is_given_up_and_unknown() {
    bounded(async {
        let node = node_that(|_, _| Act::Cut).await;
        let client = client_of(&node).build().expect("valid");
        let error = put(&client).await.expect_err("cut");
        assert_eq!((error.code(), error.outcome()), ("connection_lost", Outcome::Unknown));
        assert!(!error.is_retryable());
        let ids = ids(&node);
        assert_eq!(ids, [ids[0]; 5]);
    })
    .await;
}

#[tokio::test]
async fn an_open_write_outlasts_what_a_new_one_would_be_told() {
    bounded(async {
        let node = node_that(|count, id| match count {
            0 => Act::Cut,
            1..10 => refused(id, ErrorCode::NotReady),
            10 => refused(id, ErrorCode::FollowerUnreachable),
            11 => refused(id, ErrorCode::OutcomeUnknown),
            _ => written(id),
        })
        .await;
        let client = client_of(&node).build().expect("valid");
        assert_eq!(put(&client).await, DONE);
        let ids = ids(&node);
        assert_eq!(ids, [ids[0]; 13]);
    })
    .await;
}

#[tokio::test]
async fn an_open_write_goes_to_the_next_leader() {
    bounded(async {
        let next = FakeNode::start("b", |id, _| written(id)).await;
        let old = node_that(|count, id| match count {
            0 => Act::Cut,
            _ => {
                let mut moved = WireError::new(ErrorCode::NotLeader, "b leads");
                moved.configuration = Some(Box::new((PartitionId(0), configuration(2, "b"))));
                error(id, moved)
            }
        })
        .await;
        let map = map(&[("a", &old.address), ("b", &next.address)], &["a"]);
        let client = patient().map(map).build().expect("valid");
        assert_eq!(put(&client).await, DONE);
        assert_eq!(ids(&old), [ids(&next)[0]; 2]);
    })
    .await;
}

#[tokio::test]
async fn an_open_write_that_is_refused_is_unknown_and_one_that_is_decided_is_not() {
    bounded(async {
        let node = node_that(|count, id| if count == 0 { Act::Cut } else { refused(id, ErrorCode::MemoryFull) }).await;
        let error = put(&client_of(&node).build().expect("valid")).await.expect_err("refused");
        assert_eq!((error.code(), error.outcome()), ("connection_lost", Outcome::Unknown));

        let failed = Response::ConditionFailed { at: AT, current: Some(version(4)) };
        let node = node_that(move |count, id| if count == 0 { Act::Cut } else { answer(id, &failed) }).await;
        let error = put(&client_of(&node).build().expect("valid")).await.expect_err("decided");
        assert_eq!(error, Error::ConditionFailed { at: AT, current: Some(version(4)) });
    })
    .await;
}

#[tokio::test]
async fn a_first_attempt_that_is_too_old_is_made_anew_and_a_later_one_is_unknown() {
    bounded(async {
        let node = node_that(|count, id| if count == 0 { too_old(id, 70) } else { written(id) }).await;
        let client = client_of(&node).build().expect("valid");
        assert_eq!(put(&client).await, DONE);
        assert_eq!(put(&client).await, DONE);
        let ids = ids(&node);
        let known: Vec<_> = ids.iter().map(|id| id.known_lsn.0).collect();
        assert_eq!(known, [0, 70, 70]);
        assert!(ids[0].sequence < ids[1].sequence, "{ids:?}");

        let node = node_that(|count, id| if count == 0 { Act::Cut } else { too_old(id, 70) }).await;
        let error = put(&client_of(&node).build().expect("valid")).await.expect_err("nobody knows");
        assert_eq!((error.code(), error.outcome(), node.operations().len()), ("connection_lost", Outcome::Unknown, 2));

        // A partition can have less than it had once, where what was acknowledged was in memory only.
        let node = node_that(|count, id| if count == 1 { too_old(id, 0) } else { written(id) }).await;
        let client = client_of(&node).build().expect("valid");
        assert_eq!((put(&client).await, put(&client).await), (DONE, DONE));
        let known: Vec<_> = self::ids(&node).iter().map(|id| id.known_lsn.0).collect();
        assert_eq!(known, [0, 1, 0]);

        let node = node_that(|_, id| too_old(id, 70)).await;
        let error = put(&client_of(&node).build().expect("valid")).await.expect_err("always");
        assert_eq!((error.code(), error.outcome(), node.operations().len()), ("overloaded", Outcome::NotApplied, 5));
    })
    .await;
}

#[tokio::test]
async fn a_read_has_no_id() {
    bounded(async {
        let node = FakeNode::start("a", |id, operation| {
            assert!(matches!(operation, Operation::Get { .. }));
            answer(id, &Response::Missing { at: AT })
        })
        .await;
        assert_eq!(client_of(&node).build().expect("valid").get(b"k").await, Ok(None));
        assert_eq!(node.operation_ids(), [None]);
    })
    .await;
}
