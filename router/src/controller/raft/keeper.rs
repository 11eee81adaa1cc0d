//! Has the controllers be those of the list, and makes the cluster.
//!
//! While there is no consensus yet: once all controllers of the list have answered that they have nothing, the one of them
//! with the smallest id begins it with all as voters. If one has something, the others wait for it.
//!
//! The leader: begins the cluster if there is none. If the controllers that answer at the addresses of the list are
//! others than the voters, and all have answered, it makes these the voters. That is how one that has lost its folder (a
//! new id) comes to take part again, and how one controller becomes three.
//!
//! # Why this is safe
//! A controller with an empty folder has an id that never voted. It begins nothing unless every controller of the list
//! says that it has nothing too, so that no majority of an older consensus can be left out of it, whatever was lost. It
//! becomes a voter only by a change of the members that a majority of the old ones agreed on, which is Raft's own.

use super::{
    Entry, Raft,
    messages::Identity,
    peers::{PeerError, Peers, made},
};
use crate::controller::kept::Kept;
use kv_replication::cluster::Cluster;
use openraft::ServerState;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::timeout};

/// How soon it looks again while something is to be done, and when all is as it should be.
const SOON: Duration = Duration::from_millis(300);
const LATER: Duration = Duration::from_secs(3);
/// How long a change of the members may take before it is looked at anew.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why not all is as it should be.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    /// It will be.
    #[error("{0}")]
    Waiting(String),
    /// It may need a person.
    #[error("{0}")]
    Wrong(String),
}

/// What the keeper works with.
pub(crate) struct Keeper {
    pub(crate) raft: Raft,
    pub(crate) id: u64,
    pub(crate) peers: Arc<Peers>,
    pub(crate) clusters: watch::Receiver<Arc<Cluster>>,
    /// The cluster to begin with, if there is none.
    pub(crate) first: Kept,
}

impl Keeper {
    /// Runs until it is dropped.
    pub(crate) async fn run(mut self) {
        let (mut metrics, mut told, mut led) = (self.raft.server_metrics(), String::new(), false);
        loop {
            let leads = self.leads();
            if leads != led && !self.peers.addresses.is_empty() {
                tracing::info!(
                    id = format_args!("{:016x}", self.id),
                    "this controller {}",
                    if leads { "leads now" } else { "leads no more" }
                );
            }
            led = leads;
            let pause = match self.step().await {
                Ok(()) => LATER,
                Err(not_yet) => {
                    let why = not_yet.to_string();
                    if why != told {
                        match not_yet {
                            NotYet::Waiting(_) => tracing::info!("controllers: {why}"),
                            NotYet::Wrong(_) => tracing::warn!("controllers: {why}"),
                        }
                        told = why;
                    }
                    SOON
                }
            };
            // Also at once when the leader changes.
            let _ = timeout(pause, metrics.changed()).await;
        }
    }

    fn leads(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.state == ServerState::Leader && metrics.current_leader == Some(self.id)
    }

    /// Does what is to be done now.
    ///
    /// # Errors
    /// When not all is as it should be; what it waits for.
    async fn step(&mut self) -> Result<(), NotYet> {
        let answers = self.peers.survey().await;
        if !self.raft.is_initialized().await.map_err(wrong)? {
            return self.begin_consensus(answers).await;
        }
        if !self.leads() {
            return if made(&self.clusters.borrow()).is_some() {
                Ok(())
            } else {
                Err(NotYet::Waiting("waiting for a leader".to_owned()))
            };
        }
        if made(&self.clusters.borrow()).is_none() {
            let begun = timeout(CHANGE_TIMEOUT, self.raft.client_write(Entry::Begin(self.first.clone()))).await;
            begun.map_err(wrong)?.map_err(wrong)?;
            tracing::info!(cluster = %self.clusters.borrow().map.cluster, "the controllers keep this cluster from now on");
        }
        if self.peers.addresses.is_empty() { Ok(()) } else { self.adjust_members(answers).await }
    }

    async fn begin_consensus(&self, answers: Vec<Result<Identity, PeerError>>) -> Result<(), NotYet> {
        let all = self.all(answers)?;
        if let Some((address, _)) = all.iter().find(|(_, who)| who.has_data) {
            let why = format!("waiting to be taken in by the controller at {address}, which has the cluster");
            return Err(NotYet::Waiting(why));
        }
        let ids: BTreeMap<u64, ()> = all.iter().map(|(_, who)| (who.id, ())).collect();
        if ids.keys().next() != Some(&self.id) {
            return Err(NotYet::Waiting("waiting for another one to begin".to_owned()));
        }
        self.raft.initialize(ids).await.map_err(wrong)
    }

    async fn adjust_members(&self, answers: Vec<Result<Identity, PeerError>>) -> Result<(), NotYet> {
        let all = self.all(answers)?;
        let wanted: BTreeSet<u64> = all.iter().map(|(_, who)| who.id).collect();
        let members = self.raft.metrics().borrow().membership_config.membership().clone();
        let voters: BTreeSet<u64> = members.voter_ids().collect();
        if wanted == voters {
            return Ok(());
        }
        if !wanted.contains(&self.id) {
            return Err(wrong("--controller-peers does not list this controller itself"));
        }
        let ours = made(&self.clusters.borrow());
        for (address, who) in &all {
            let known = members.get_node(&who.id).is_some();
            if !known && (who.has_data || who.cluster.is_some_and(|theirs| Some(theirs) != ours)) {
                return Err(wrong(format!(
                    "the controller at {address} has data of its own and cannot be taken in: move its --data-dir away, or \
                     take it off --controller-peers"
                )));
            }
        }
        let change = async {
            for id in wanted.difference(&voters) {
                self.raft.add_learner(*id, (), true).await.map_err(|e| e.to_string())?;
            }
            self.raft.change_membership(wanted.clone(), false).await.map_err(|e| e.to_string())
        };
        match timeout(CHANGE_TIMEOUT, change).await {
            Ok(Ok(_)) => {
                tracing::info!(voters = wanted.len(), "the controllers are those of --controller-peers now");
                Ok(())
            }
            Ok(Err(error)) => Err(wrong(format!("they could not become those of --controller-peers: {error}"))),
            Err(_) => Err(wrong("they did not become those of --controller-peers in time; trying on")),
        }
    }

    /// Everyone of the list, by address.
    ///
    /// # Errors
    /// When one has not answered, or was told another list.
    fn all(&self, answers: Vec<Result<Identity, PeerError>>) -> Result<Vec<(&str, Identity)>, NotYet> {
        let addresses = &self.peers.addresses;
        let mut all = Vec::with_capacity(addresses.len());
        for (address, answer) in addresses.iter().zip(answers) {
            let who =
                answer.map_err(|e| NotYet::Waiting(format!("the controller at {address} does not answer: {e}")))?;
            let mut ours = addresses.clone();
            ours.sort_unstable();
            if who.peers != ours {
                return Err(wrong(format!(
                    "the controller at {address} was started with other --controller-peers ({}): give all the same",
                    who.peers.join(",")
                )));
            }
            all.push((address.as_str(), who));
        }
        let ids: BTreeSet<u64> = all.iter().map(|(_, who)| who.id).collect();
        if ids.len() < all.len() {
            return Err(wrong("--controller-peers lists a controller twice"));
        }
        Ok(all)
    }
}

fn wrong(why: impl std::fmt::Display) -> NotYet {
    NotYet::Wrong(why.to_string())
}
