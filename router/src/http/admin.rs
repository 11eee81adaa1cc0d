//! `POST /v1/admin/…`: what a person wants of the cluster.
//!
//! | address | body | carried out by |
//! |---|---|---|
//! | `handoff` | `{"partitions": [3]}`, `{"led_by": "NODE"}` or `{"all": true}`; `"to": "NODE"` if it matters | the leaders |
//! | `drop` | `{"partitions": [3], "node": "NODE"}` or `{"all": true, "node": "NODE"}` | the leaders |
//! | `force-recover` | `{"leader": "NODE", "partitions": [{"partition": 3, "epoch": 7}], "old_leader_is_stopped": true}` | the controller |
//!
//! The answer tells `accepted` and `refused` partitions apart; it is an error only if all were refused. What a leader
//! accepted it carries out after that: `GET /v1/map?after=VERSION` waits for what becomes of it.
//!
//! # Invariants
//! * Nothing is done for a page of another site: see `same_origin.rs`.
//! * A forced recovery is a compare-and-set on what the person saw, and never on a partition whose leader serves.

use super::{
    Inner,
    admin_request::{self as request, Drop, ForceRecover, Handoff},
    error::ApiError,
    exchange::{Body, Reply, reply},
    same_origin, survey, value,
};
use crate::controller::{config_store::Decision, error::CasError};
use hyper::{Request, StatusCode, body::Incoming};
use kv_proto::{
    control::{Change, Proposal},
    ids::{Epoch, HistoryId, NodeId, PartitionId},
    request::AdminCommand,
};
use kv_replication::cluster::Command;
use serde::Serialize;
use tokio::task::JoinSet;

/// Longest body, in bytes: all partitions of the largest cluster fit.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// What is done to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admin {
    Handoff,
    Drop,
    ForceRecover,
}

/// What became of each partition.
#[derive(Debug, Default, Serialize)]
struct Outcomes {
    accepted: Vec<Accepted>,
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct Accepted {
    partition: PartitionId,
    /// Who accepted it; with a forced recovery, who leads now.
    leader: NodeId,
    /// The epoch that it was accepted in: what was asked for begins a later one. With a forced recovery, that one.
    epoch: Epoch,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<HistoryId>,
}

#[derive(Debug, Serialize)]
struct Refused {
    partition: PartitionId,
    code: &'static str,
    outcome: String,
    detail: String,
}

impl Outcomes {
    fn refuse(&mut self, partition: PartitionId, error: &ApiError) {
        let (code, outcome, detail) = (error.code, error.outcome.to_string(), error.detail.clone());
        self.refused.push(Refused { partition, code, outcome, detail });
    }

    /// The answer; the error of one of them if there is nothing else to tell.
    fn reply(mut self, status: StatusCode, refusal: Option<ApiError>) -> Result<Reply, ApiError> {
        if let (true, Some(mut error)) = (self.accepted.is_empty(), refusal) {
            let partition = self.refused[0].partition;
            let others = match self.refused.len() {
                1 => String::new(),
                n => format!("; {} other partitions were not accepted either", n - 1),
            };
            error.detail = format!("partition {partition}: {}{others}", error.detail);
            return Err(error);
        }
        self.accepted.sort_by_key(|a| a.partition);
        let body = serde_json::to_vec(&self).expect("texts and numbers are JSON");
        Ok(reply(status, value::JSON, Body::from(body)))
    }
}

impl Inner {
    pub(super) async fn admin(&self, admin: Admin, request: Request<Incoming>) -> Result<Reply, ApiError> {
        same_origin::check(request.headers()).map_err(ApiError::closing)?;
        let (body, _held) = self.read_body(request, MAX_BODY_BYTES).await?;
        let commands = match admin {
            Admin::ForceRecover => return self.force_recover(request::parse(&body)?).await,
            Admin::Handoff => request::parse::<Handoff>(&body)?.commands(&self.store.get().map)?,
            Admin::Drop => request::parse::<Drop>(&body)?.commands(&self.store.get().map)?,
        };
        self.tell_leaders(commands).await
    }

    async fn tell_leaders(&self, commands: Vec<AdminCommand>) -> Result<Reply, ApiError> {
        let mut told = JoinSet::new();
        for command in commands {
            let client = self.client.clone();
            told.spawn(async move { (command.partition(), client.admin(command).await) });
        }
        let map = &self.store.get().map;
        let mut outcomes = Outcomes::default();
        let mut refusal = None;
        let mut answers = told.join_all().await;
        answers.sort_by_key(|(partition, _)| *partition);
        for (partition, answer) in answers {
            match (answer, map.configuration(partition)) {
                (Ok(at), Some(configuration)) => outcomes.accepted.push(Accepted {
                    partition,
                    leader: configuration.leader.node,
                    epoch: at.epoch,
                    history: None,
                }),
                (Ok(_), None) => {}
                (Err(error), _) => {
                    let error = ApiError::from(error);
                    outcomes.refuse(partition, &error);
                    refusal = refusal.or(Some(error));
                }
            }
        }
        outcomes.reply(StatusCode::ACCEPTED, refusal)
    }

    async fn force_recover(&self, wish: ForceRecover) -> Result<Reply, ApiError> {
        let cluster = self.store.get();
        let answers = survey::ask(&self.client, &cluster.map).await;
        let leader = wish.new_leader(&cluster.map, &answers)?;
        let mut outcomes = Outcomes::default();
        let mut refusal = None;
        let mut proposals = Vec::new();
        for forced in &wish.partitions {
            if let Some(why) = request::why_not_forced(forced.partition, leader.node, &cluster.map, &answers) {
                let error = ApiError::new(StatusCode::CONFLICT, "not_recoverable", why);
                outcomes.refuse(forced.partition, &error);
                refusal = refusal.or(Some(error));
                continue;
            }
            let now = cluster.map.configuration(forced.partition).map(|c| c.history);
            let change = Change::ForceRecover { leader, history: another_history(now) };
            let (id, partition, epoch) = (rand::random(), forced.partition, forced.epoch);
            proposals.push(Proposal { id, partition, epoch, change });
        }
        tracing::warn!(leader = %leader.node, partitions = ?wish.partitions, "a forced recovery was asked for");
        let decided = match self.store.cas(Command::Propose(proposals.clone())).await {
            Ok(Decision::Decided(decided)) => decided,
            Ok(Decision::Registered | Decision::Done) => Vec::new(),
            Err(error @ CasError::Refused(_)) => return Err(ApiError::not_ready(error.to_string())),
            Err(error @ (CasError::NoLeader | CasError::Unknown(_))) => {
                return Err(ApiError::interrupted(error.to_string()));
            }
        };
        for (proposal, decided) in proposals.into_iter().zip(decided) {
            let partition = proposal.partition;
            match (decided, proposal.change) {
                (None, Change::ForceRecover { history, .. }) => {
                    tracing::warn!(%partition, leader = %leader.node, %history, "recovered by force");
                    let (epoch, history) = (proposal.epoch.next(), Some(history));
                    outcomes.accepted.push(Accepted { partition, leader: leader.node, epoch, history });
                }
                (Some(why), _) => {
                    let error = ApiError::new(StatusCode::CONFLICT, "not_recoverable", why);
                    outcomes.refuse(partition, &error);
                    refusal = refusal.or(Some(error));
                }
                (None, _) => {}
            }
        }
        outcomes.reply(StatusCode::OK, refusal)
    }
}

/// A history that was never before, as far as chance allows.
fn another_history(now: Option<HistoryId>) -> HistoryId {
    loop {
        let history = HistoryId(rand::random());
        if Some(history) != now {
            return history;
        }
    }
}
