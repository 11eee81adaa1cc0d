//! What controllers ask each other, and what is answered.
//!
//! JSON in frames of [`Kind::Consensus`](kv_proto::frame::Kind), on connections that begin with a hello of
//! [`Caller::Controller`](kv_proto::hello::Caller). One question at a time is asked on a connection.

use super::{Entry, Outcome, Raft, Types};
use crate::controller::kept::Kept;
use kv_proto::ids::ClusterId;
use openraft::{
    LogId, Snapshot, SnapshotMeta, Vote,
    error::{ClientWriteError, Fatal, RaftError},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::timeout;

/// Longest message, in bytes: a snapshot of the largest cluster, or the longest proposals of a node, fit.
pub(crate) const MAX_BYTES: usize = 16 * 1024 * 1024;
/// How long an entry may take; whoever passed it on waits no longer.
const CARRY_OUT_TIMEOUT: Duration = Duration::from_secs(4);
/// Terms and indexes beyond this are nonsense; openraft adds to them.
const HIGHEST: u64 = 1 << 62;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Who are you?
    Who,
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Snapshot {
        vote: Vote<u64>,
        meta: SnapshotMeta<u64, ()>,
        cluster: Option<Kept>,
    },
    /// Of one that does not lead to the one that does.
    CarryOut(Entry),
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Response {
    Who(Identity),
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(SnapshotResponse<u64>),
    /// The entry was applied, at this index.
    CarriedOut {
        outcome: Outcome,
        index: u64,
    },
    /// It has to be asked of another one.
    NotLeader,
    /// There is no answer, since this controller has failed or the question makes no sense.
    Failed(String),
}

/// Who a controller is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    /// Whether it has taken part in anything that it must not forget.
    pub(crate) has_data: bool,
    /// The cluster that it keeps, once it knows it.
    pub(crate) cluster: Option<ClusterId>,
    /// The controllers that it was told of, sorted.
    pub(crate) peers: Vec<String>,
}

/// What openraft takes for granted of what it is given, and would end the process over.
///
/// # Errors
/// When it is not so; what.
fn check(request: &Request, own: u64) -> Result<(), &'static str> {
    let sane = |log: Option<LogId<u64>>| log.is_none_or(|l| l.index < HIGHEST && l.leader_id.term < HIGHEST);
    let of_leader = |vote: &Vote<u64>| vote.committed && vote.leader_id.term < HIGHEST && vote.leader_id.node_id != own;
    match request {
        Request::Who | Request::CarryOut(Entry::Register { .. } | Entry::Propose(_)) => Ok(()),
        Request::CarryOut(Entry::DisregardStrangers) => Ok(()),
        Request::CarryOut(Entry::Begin(_)) => Err("a cluster is begun by the leader alone"),
        Request::Vote(vote) => {
            let candidate =
                !vote.vote.committed && vote.vote.leader_id.term < HIGHEST && vote.vote.leader_id.node_id != own;
            (candidate && sane(vote.last_log_id)).then_some(()).ok_or("it is no candidate's")
        }
        Request::Append(append) => {
            if !of_leader(&append.vote) || !sane(append.prev_log_id) || !sane(append.leader_commit) {
                return Err("it is no leader's");
            }
            let mut previous = append.prev_log_id;
            for entry in &append.entries {
                if entry.log_id.index != previous.map_or(0, |p| p.index + 1)
                    || previous.is_some_and(|p| p > entry.log_id)
                {
                    return Err("its entries do not follow each other");
                }
                if !sane(Some(entry.log_id)) || entry.log_id.leader_id.term > append.vote.leader_id.term {
                    return Err("its entries are of a later term than itself");
                }
                if entry.get_membership_voters() == Some(0) {
                    return Err("it leaves no voter");
                }
                previous = Some(entry.log_id);
            }
            Ok(())
        }
        Request::Snapshot { vote, meta, .. } => {
            let last = meta.last_log_id;
            let voters = meta.last_membership.membership().voter_ids().count();
            let sound =
                of_leader(vote) && last.is_some() && sane(last) && sane(*meta.last_membership.log_id()) && voters > 0;
            sound.then_some(()).ok_or("the snapshot is none")
        }
    }
}

/// How many voters a membership entry leaves.
trait Voters {
    fn get_membership_voters(&self) -> Option<usize>;
}

impl Voters for openraft::Entry<Types> {
    fn get_membership_voters(&self) -> Option<usize> {
        match &self.payload {
            openraft::EntryPayload::Membership(membership) => Some(membership.voter_ids().count()),
            _ => None,
        }
    }
}

/// Answers a question, whatever it is.
pub(crate) async fn answer(raft: &Raft, identity: impl Future<Output = Identity>, own: u64, body: &[u8]) -> Response {
    let request: Request = match serde_json::from_slice(body) {
        Ok(request) => request,
        Err(error) => return Response::Failed(format!("this makes no sense: {error}")),
    };
    if let Err(what) = check(&request, own) {
        return Response::Failed(format!("this makes no sense: {what}"));
    }
    let failed = |fatal: &Fatal<u64>| Response::Failed(format!("this controller has failed: {fatal}"));
    match request {
        Request::Who => Response::Who(identity.await),
        Request::Append(append) => match raft.append_entries(append).await {
            Ok(response) => Response::Append(response),
            Err(RaftError::Fatal(fatal)) => failed(&fatal),
            Err(RaftError::APIError(never)) => match never {},
        },
        Request::Vote(vote) => match raft.vote(vote).await {
            Ok(response) => Response::Vote(response),
            Err(RaftError::Fatal(fatal)) => failed(&fatal),
            Err(RaftError::APIError(never)) => match never {},
        },
        Request::Snapshot { vote, meta, cluster } => {
            match raft.install_full_snapshot(vote, Snapshot { meta, snapshot: Box::new(cluster) }).await {
                Ok(response) => Response::Snapshot(response),
                Err(fatal) => failed(&fatal),
            }
        }
        Request::CarryOut(entry) => match timeout(CARRY_OUT_TIMEOUT, raft.client_write(entry)).await {
            Err(late) => Response::Failed(late.to_string()),
            Ok(Ok(written)) => Response::CarriedOut { index: written.log_id.index, outcome: written.data },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Response::NotLeader,
            Ok(Err(RaftError::APIError(error))) => Response::Failed(error.to_string()),
            Ok(Err(RaftError::Fatal(fatal))) => failed(&fatal),
        },
    }
}
