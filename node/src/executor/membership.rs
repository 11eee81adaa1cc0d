//! The node's place in the cluster: it registers with a controller, and learns the map from it.
//!
//! Any of the controllers will do, since each has the leader among them carry out what it is asked. If one is lost, or
//! refuses, or cannot reach the others, the node goes on to the next. One executor keeps the connection; what it learns goes to all of them. Without a controller the node goes on
//! with the map that it has.

use super::{
    Executor, Mail, Shared, View,
    tasks::{Backoff, with},
};
use crate::transport::{
    connection::Role,
    dial::{CallError, register},
    socket::Socket,
};
use glommio::timer::sleep;
use kv_proto::{
    codec,
    control::{Change, FromController, Proposal, ToController},
    frame::{self, Kind},
    hello::{Caller, Hello},
    ids::{ExecutorIndex, PartitionId},
};
use std::{cell::RefCell, rc::Weak, sync::Arc, time::Duration};

/// Failed attempts in a row that are worth a warning: a controller that comes back at once is none.
const WORTH_A_WARNING: u32 = 5;
/// How long a node that was refused waits before it asks again: a person has to do something first.
const REFUSED_PAUSE: Duration = Duration::from_secs(2);

/// Registers with a controller, and with the next one whenever the connection was lost.
pub(super) async fn keep_registered(this: Weak<RefCell<Executor>>, shared: Arc<Shared>) {
    let settings = &shared.settings;
    let Some(node) = with(&this, |executor| executor.registration()) else { return };
    let controllers = &settings.controllers;
    let (mut backoff, mut failures, mut told) = (Backoff::default(), 0, String::new());
    for (attempt, controller) in (1..).zip(controllers.iter().cycle()) {
        let Some(lost) = with(&this, |executor| executor.wakes.controller.clone()) else { return };
        let cluster = shared.storage.cluster();
        let hello = Hello { cluster: None, caller: Caller::Node, executor: None };
        match register(controller, &hello, &ToController::Register { cluster, node: node.clone() }).await {
            Ok((socket, received)) => {
                tracing::info!(controller, "registered with the controller");
                (backoff, failures, told) = (Backoff::default(), 0, String::new());
                with(&this, |executor| executor.handle_registered(socket, &received));
                lost.wait().await;
                tracing::info!(
                    controller,
                    "the connection to the controller is lost; going on with the map known so far"
                );
            }
            Err(error) => {
                let (text, refused) = (error.to_string(), matches!(error, CallError::Refused(_)));
                failures += 1;
                if text != told && (refused || failures >= WORTH_A_WARNING) {
                    if refused {
                        tracing::error!(controller, "the controller refuses this node: {text}");
                    } else {
                        tracing::warn!(controller, "cannot register with the controller, trying on: {text}");
                    }
                    told = text;
                }
                // Whoever has not answered, the next one may.
                if refused || attempt % controllers.len() == 0 {
                    sleep(if refused { REFUSED_PAUSE } else { backoff.next() }).await;
                }
            }
        }
    }
}

impl Executor {
    /// The connection on which the node registered is up.
    fn handle_registered(&mut self, socket: Socket, received: &[u8]) {
        self.controller = self.add_line(socket, Role::Controller, received);
        self.tell_controller_reachable(self.controller.is_some());
        self.finish();
    }

    /// The controller says something.
    pub(super) fn handle_controller(&mut self, message: FromController) {
        match message {
            FromController::Map(map) => {
                let (before, shared) = (self.view.clone(), self.shared.clone());
                if map.partitions.is_empty()
                    || before
                        .as_ref()
                        .is_some_and(|v| v.map.cluster != map.cluster || v.map.partitions.len() != map.partitions.len())
                {
                    tracing::error!(cluster = %map.cluster, version = %map.version, "ignoring a map of another cluster, or one without partitions");
                    return;
                }
                // Of a controller that lags behind the one that the node was at before.
                if before.as_ref().is_some_and(|v| v.map.version > map.version) {
                    tracing::info!(version = %map.version, "ignoring an older map");
                    return;
                }
                if let Some(cluster) = shared.storage.cluster().filter(|c| *c != map.cluster) {
                    let ours = &shared.settings.storage.dir;
                    tracing::error!(
                        "the data in {} belong to cluster {cluster}, and this controller's cluster is {}: give the node the \
                         controller of its own cluster, or another --data-dir",
                        ours.display(),
                        map.cluster
                    );
                    return;
                }
                if let Err(error) = shared.storage.join(map.cluster) {
                    tracing::error!("{error}");
                    return;
                }
                let view = Arc::new(View::new(map, before.as_deref(), shared.me.node, shared.mail.len()));
                for mail in shared.mail.iter().skip(1) {
                    mail.send(Mail::View(view.clone()));
                }
                self.handle_view(view);
            }
            FromController::Refused(why) => tracing::error!("the controller refuses: {why}"),
            FromController::Decided(decided) => {
                // What was refused is not asked for again in vain: the map that comes with it says why.
                for why in decided.into_iter().flatten() {
                    tracing::debug!("the controller refuses a change: {why}");
                }
            }
            FromController::Registered { .. } | FromController::Pong => {}
        }
    }

    /// A replica wants its configuration changed; it asks again while nothing happens.
    pub(super) fn propose(&mut self, partition: PartitionId, change: Change) {
        let Some(epoch) = self.partition(partition).map(|p| p.replica.configuration().epoch) else { return };
        // Another change in the same epoch is another proposal.
        let what = u64::from(crc32c::crc32c(&codec::encode(&change)));
        let id = u128::from(self.shared.proposals) << 64
            | u128::from(u64::from(partition.0) << 48 | (epoch.0 & 0xffff) << 32 | what);
        self.proposals.push(Proposal { id, partition, epoch, change });
    }

    /// Sends what was proposed to who has the connection to the controller.
    pub(super) fn send_proposals(&mut self) {
        if !self.proposals.is_empty() {
            let proposals = std::mem::take(&mut self.proposals);
            if self.index == ExecutorIndex(0) {
                self.send_to_controller(proposals);
            } else {
                self.shared.mail[0].send(Mail::Propose(proposals));
            }
        }
    }

    /// Asks the controller for these changes, if it is there.
    pub(super) fn send_to_controller(&mut self, proposals: Vec<Proposal>) {
        if let Some(line) = self.controller {
            let message = ToController::Propose(proposals);
            self.append_to_line(line, |out| {
                frame::append_message(out, Kind::ToController, 0, |body| codec::encode_into(body, &message));
            });
        }
    }

    /// Asks the controller whether it is there; a controller that does not answer is given up after a while.
    pub(super) fn ping_controller(&mut self) {
        if let Some(line) = self.controller {
            self.append_to_line(line, |out| {
                frame::append_message(out, Kind::ToController, 0, |body| codec::encode_into(body, &ToController::Ping));
            });
        }
    }

    /// The connection to the controller is gone.
    pub(super) fn handle_controller_lost(&mut self) {
        self.controller = None;
        self.tell_controller_reachable(false);
        self.wakes.controller.wake();
    }

    /// Lets all executors know whether the controller can be reached.
    fn tell_controller_reachable(&mut self, reachable: bool) {
        for mail in self.shared.mail.iter().skip(1) {
            mail.send(Mail::Controller { reachable });
        }
        self.handle_controller_reachable(reachable);
    }
}
