//! The controller of the simulation: the real check of proposals, with proposals and maps that are late, lost and
//! repeated.

use kv_proto::{
    cluster_map::Configuration,
    control::{Change, Proposal},
    ids::{Epoch, HistoryId, Member, PartitionId},
};
use kv_replication::configuration;

pub(crate) struct Controller {
    /// Every configuration that there was; the last is the current one.
    pub(crate) configurations: Vec<Configuration>,
    /// What is on its way to it.
    pub(crate) proposals: Vec<Proposal>,
}

impl Controller {
    pub(crate) fn new(leader: Member, in_sync: Vec<Member>) -> Self {
        let mut controller = Controller { configurations: Vec::new(), proposals: Vec::new() };
        controller.decide(Epoch(0), Change::Create { history: HistoryId(7), leader, in_sync });
        controller
    }

    pub(crate) fn current(&self) -> &Configuration {
        self.configurations.last().expect("the partition was created")
    }

    pub(crate) fn propose(&mut self, epoch: Epoch, change: Change) {
        self.proposals.push(Proposal { id: 0, partition: PartitionId(0), epoch, change });
    }

    pub(crate) fn decide(&mut self, epoch: Epoch, change: Change) {
        let proposal = Proposal { id: 0, partition: PartitionId(0), epoch, change };
        if let Ok(next) = configuration::apply(self.configurations.last(), &proposal) {
            self.configurations.push(next);
        }
    }
}
