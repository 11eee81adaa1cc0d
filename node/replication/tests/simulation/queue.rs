//! What will happen, in the order of simulated time.

use crate::{
    clients::{Answer, Request},
    network::Letter,
    node::Place,
};
use kv_proto::{
    cluster_map::ClusterMap,
    control::Proposal,
    ids::{Lsn, Member, NodeId},
};
use std::{collections::BTreeMap, rc::Rc};

/// Nanoseconds since the beginning, by the clock on the wall that nobody in the simulation sees.
pub(crate) type Time = u64;
pub(crate) const MS: Time = 1_000_000;

/// Something that happens. What is for one life of a node's process says which.
#[derive(Debug)]
pub(crate) enum Happening {
    /// What was sent on a connection arrives; `late` if the connection is gone.
    Letter { connection: u64, to_follower: bool, late: bool, letter: Letter },
    /// Who made a connection notices that nobody is at its other end.
    Lost { connection: u64 },
    /// A replica's timeout may be due.
    Timer { place: Place, life: u32 },
    /// The disk has done what it was given.
    Synced { place: Place, life: u32 },
    /// The replica is told what is on disk.
    Told { place: Place, life: u32 },
    /// The log was read for somebody.
    Read { place: Place, life: u32, to: NodeId, after: Lsn },
    /// The next slice of a copy of the table goes out.
    Slice { place: Place, life: u32, connection: u64 },
    /// A node looks after its connections, its logs and the controller.
    Upkeep { node: usize, life: u32 },
    /// A process that stood still goes on.
    Wake { node: usize, life: u32 },
    /// A process ends in order.
    Stop { node: usize, life: u32 },
    /// A process is started.
    Start { node: usize },
    /// A node's proposal reaches the controller.
    Proposal(Proposal),
    /// A node says that it is there and asks for the map; it is registered with what it says.
    Poll { node: usize, life: u32, member: Member },
    /// The map reaches a node; `answers` if it had asked.
    Map { node: usize, life: u32, map: Rc<ClusterMap>, answers: bool },
    /// A client's request reaches a node.
    Request { node: usize, request: Request },
    /// An answer reaches a client.
    Answer { client: usize, attempt: u64, answer: Answer },
    /// A client goes on.
    Client { client: usize },
    /// Something goes wrong.
    Fault,
}

impl Happening {
    /// The node whose process has to run for it.
    pub(crate) fn process(&self) -> Option<(usize, Option<u32>)> {
        match self {
            Happening::Timer { place, life }
            | Happening::Synced { place, life }
            | Happening::Told { place, life }
            | Happening::Read { place, life, .. }
            | Happening::Slice { place, life, .. } => Some((place.node, Some(*life))),
            Happening::Upkeep { node, life } | Happening::Stop { node, life } | Happening::Map { node, life, .. } => {
                Some((*node, Some(*life)))
            }
            Happening::Request { node, .. } => Some((*node, None)),
            _ => None,
        }
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) now: Time,
    waiting: BTreeMap<(Time, u64), Happening>,
    pushed: u64,
}

impl Queue {
    pub(crate) fn push(&mut self, at: Time, happening: Happening) {
        self.pushed += 1;
        self.waiting.insert((at.max(self.now), self.pushed), happening);
    }

    /// The next thing that happens; its time is now.
    pub(crate) fn pop(&mut self) -> Option<Happening> {
        let ((at, _), happening) = self.waiting.pop_first()?;
        self.now = at;
        Some(happening)
    }

    /// How many things have been.
    pub(crate) fn count(&self) -> u64 {
        self.pushed - self.waiting.len() as u64
    }

    /// Whether proposals are on their way.
    pub(crate) fn has_proposals(&self) -> bool {
        self.waiting.values().any(|h| matches!(h, Happening::Proposal(_)))
    }
}
