//! A copy of a leader's table on its way to a learner, as whoever embeds a replica makes it: slice by slice, while the table changes.

use crate::{
    checks::Verdict,
    disk::incoming::Travelling,
    node::Place,
    queue::{Happening, MS},
    world::World,
};
use kv_proto::{
    codec,
    effect::Expiry,
    ids::{Epoch, NodeId},
    replication::{PeerBody, Position},
};
use kv_replication::replica::{Event, Replica};
use kv_storage::table::{Entry, Walk};

/// A copy that is being made.
#[derive(Debug)]
pub(crate) struct Outgoing {
    to: NodeId,
    /// The epoch that it is made in.
    epoch: Epoch,
    /// The last record that was applied when it began.
    pub(crate) start: Position,
    walk: Walk,
}

impl World {
    pub(crate) fn begin_copy(&mut self, place: Place, to: NodeId) -> Verdict {
        let Some(connection) = self.connection(place, to) else { return Ok(()) };
        self.coverage.note("copies begun", 1);
        let part = self.part_mut(place);
        let epoch = part.replica.as_ref().expect("who sends a copy").configuration().epoch;
        let start = part.disk.process.as_ref().expect("it is running").applied;
        part.outgoing.insert(connection, Outgoing { to, epoch, start, walk: Walk::new() });
        self.send_on(connection, true, (epoch, PeerBody::CopyBegin { start }));
        self.go_on_with_copy(place, connection);
        Ok(())
    }

    fn go_on_with_copy(&mut self, place: Place, connection: u64) {
        let life = self.nodes[place.node].life;
        let takes = self.random.below(30 * MS);
        self.queue.push(self.queue.now + takes, Happening::Slice { place, life, connection });
    }

    /// The next slice; none if the connection is gone, or the leader in another epoch.
    pub(crate) fn send_slice(&mut self, place: Place, connection: u64) -> Verdict {
        let max_bytes = 1 + self.random.below(400) as usize;
        let part = &mut self.nodes[place.node].parts[place.partition];
        let Some(mut copy) = part.outgoing.remove(&connection) else { return Ok(()) };
        let epoch = part.replica.as_ref().map(Replica::configuration).map(|c| c.epoch);
        if epoch != Some(copy.epoch) || !self.network.is_open(connection) {
            return Ok(());
        }
        let process = part.disk.process.as_ref().expect("it is running");
        let mut entries: Vec<Travelling> = Vec::new();
        let take = &mut |key: &[u8], entry: Entry<'_>| {
            let expires = entry.expires.map_or(0, Expiry::ms);
            entries.push((entry.lsn.0, expires, key.to_vec(), entry.content_type.to_owned(), entry.value.to_vec()));
        };
        let is_done = copy.walk.next_chunk(&process.table, max_bytes, take);
        let (end, digest) = (process.applied.lsn, process.table.digest());
        let bytes = codec::encode(&entries);
        self.send_on(connection, true, (copy.epoch, PeerBody::CopyPart { bytes }));
        if is_done {
            self.send_on(connection, true, (copy.epoch, PeerBody::CopyEnd { end, digest }));
            return self.give(place, Event::CopySent { to: copy.to, start: copy.start });
        }
        self.part_mut(place).outgoing.insert(connection, copy);
        self.go_on_with_copy(place, connection);
        Ok(())
    }
}
