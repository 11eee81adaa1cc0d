//! A copy of a leader's table on its way to a learner, as whoever embeds a replica makes it: part by part, while the table changes.

use crate::{
    checks::Verdict,
    node::Place,
    queue::{Happening, MS},
    world::World,
};
use kv_proto::{
    ids::{Epoch, NodeId},
    replication::{PeerBody, Position},
};
use kv_replication::replica::{Event, Replica};
use kv_storage::copy::CopyWalk;

/// A copy that is being made.
#[derive(Debug)]
pub(crate) struct Outgoing {
    to: NodeId,
    sent: u64,
    /// The epoch that it is made in.
    epoch: Epoch,
    /// The last record that was applied when it began.
    pub(crate) start: Position,
    walk: CopyWalk,
    /// How many parts were sent.
    parts: u32,
}

impl World {
    pub(crate) fn begin_copy(&mut self, place: Place, to: NodeId, sent: u64) -> Verdict {
        let Some(connection) = self.connection(place, to) else { return Ok(()) };
        self.coverage.note("copies begun", 1);
        let part = self.part_mut(place);
        let epoch = part.replica.as_ref().expect("who sends a copy").configuration().epoch;
        let start = part.disk.begin_copy();
        part.outgoing.insert(connection, Outgoing { to, sent, epoch, start, walk: CopyWalk::default(), parts: 0 });
        self.send_on(connection, true, (epoch, PeerBody::CopyBegin { start, sent }));
        self.go_on_with_copy(place, connection);
        Ok(())
    }

    fn go_on_with_copy(&mut self, place: Place, connection: u64) {
        let life = self.nodes[place.node].life;
        let takes = self.random.below(30 * MS);
        self.queue.push(self.queue.now + takes, Happening::Slice { place, life, connection });
    }

    /// The next part; none if the connection is gone, or the leader in another epoch.
    pub(crate) fn send_slice(&mut self, place: Place, connection: u64) -> Verdict {
        let max_bytes = 1 + self.random.below(400) as usize;
        let part = &mut self.nodes[place.node].parts[place.partition];
        let Some(mut copy) = part.outgoing.remove(&connection) else { return Ok(()) };
        let current = part.replica.as_ref().map(Replica::configuration).map(|c| c.epoch);
        if current != Some(copy.epoch) || !self.network.is_open(connection) {
            return Ok(());
        }
        let Outgoing { to, sent, epoch, start, parts: number, .. } = copy;
        let process = part.disk.process.as_ref().expect("it is running");
        let (bytes, is_last) = copy.walk.next_part(&process.table, &process.operations, max_bytes);
        let (end, digest) = (process.applied.lsn, process.digest());
        self.send_on(connection, true, (epoch, PeerBody::CopyPart { sent, number, bytes }));
        copy.parts += 1;
        if is_last {
            self.send_on(connection, true, (epoch, PeerBody::CopyEnd { sent, parts: copy.parts, end, digest }));
            return self.give(place, Event::CopySent { to, start });
        }
        self.part_mut(place).outgoing.insert(connection, copy);
        self.go_on_with_copy(place, connection);
        Ok(())
    }
}
