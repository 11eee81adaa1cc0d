//! When leadership passes to another node on purpose: the node stops, its disk is late, or another node is preferred.

use super::{Executor, Stop};
use crate::clock;
use kv_proto::ids::{Epoch, NodeId, PartitionId};
use kv_replication::{clock::Instant64, placement, replica::Event};
use std::collections::HashMap;

/// How many partitions go back to the node that is preferred at a time.
const RETURNED_AT_A_TIME: usize = 8;

/// What an executor remembers about it.
pub(super) struct Leadership {
    pub(super) controller_reachable: bool,
    /// Since when the partitions that another node should lead have been in their epoch.
    waits: HashMap<PartitionId, (Epoch, Instant64)>,
}

impl Default for Leadership {
    fn default() -> Self {
        Leadership { controller_reachable: true, waits: HashMap::new() }
    }
}

impl Executor {
    /// Whether the controller can be reached has changed.
    pub(super) fn handle_controller_reachable(&mut self, reachable: bool) {
        self.leadership.controller_reachable = reachable;
        let now = clock::now();
        for at in 0..self.owned.len() {
            self.give(now, self.owned[at], Event::Controller { reachable });
        }
    }

    /// Has others lead what is led here, as far as there are any.
    pub(super) fn pass_on_leadership(&mut self) {
        if self.stopping == Some(Stop::HandingOff) {
            self.hand_off_all();
            self.finish();
        }
    }

    /// Has others lead what is led here, without this node.
    pub(super) fn hand_off_all(&mut self) {
        let now = clock::now();
        for at in 0..self.owned.len() {
            self.give(now, self.owned[at], Event::Handoff { to: None, leaves: true });
        }
    }

    /// Whether leadership of something that is led here can still pass to others.
    pub(super) fn passes_on_leadership(&self) -> bool {
        let owned = self.owned.iter().filter_map(|id| self.partitions[usize::from(id.0)].as_ref());
        self.stopping == Some(Stop::HandingOff) && owned.into_iter().any(|p| p.replica.is_handing_off())
    }

    /// Gives partitions back to the nodes that are preferred to lead them, once those have been in sync for long enough.
    pub(super) fn maybe_return_leadership(&mut self, now: Instant64) {
        let (Some(after), Some(view)) = (self.shared.settings.rebalance_after, self.view.clone()) else { return };
        let mut waited = std::mem::take(&mut self.leadership.waits);
        let mut returned = 0;
        for ((id, _), roles) in view.map.partitions().zip(placement::all_roles(&view.map)) {
            let Some((preferred, _)) = roles else { continue };
            let Some(epoch) = self.epoch_to_return(id, preferred.node) else { continue };
            let mut since = waited.remove(&id).filter(|(of, _)| *of == epoch).map_or(now, |(_, since)| since);
            let is_due = now.since(since) >= after && returned < RETURNED_AT_A_TIME;
            if is_due {
                (since, returned) = (now, returned + 1);
            }
            self.leadership.waits.insert(id, (epoch, since));
            if is_due {
                self.give(now, id, Event::Handoff { to: Some(preferred.node), leaves: false });
            }
        }
    }

    /// The epoch in which this node leads a partition that an in-sync follower should lead, if it does.
    fn epoch_to_return(&self, id: PartitionId, preferred: NodeId) -> Option<Epoch> {
        let replica = &self.partitions.get(usize::from(id.0))?.as_ref()?.replica;
        let configuration = replica.configuration();
        let follows = configuration.in_sync.iter().any(|m| m.node == preferred);
        (replica.leads_since().is_some() && follows).then_some(configuration.epoch)
    }
}
