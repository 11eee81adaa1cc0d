//! A copy of a leader's table on its way to a learner, as whoever embeds a replica makes it: slice by slice, while the table changes.
//! Its parts are those of a checkpoint.

use crate::{
    checks::Verdict,
    disk::{CLUSTER, Process},
    node::Place,
    queue::{Happening, MS},
    world::World,
};
use kv_proto::{
    ids::{DiskId, Epoch, Lsn, NodeId, PartitionId},
    replication::{PeerBody, Position},
};
use kv_replication::replica::{Event, Replica};
use kv_storage::{
    checkpoint::{Encoder, Header},
    log::format::Identity,
    table::{Entry, Walk},
};

/// A copy that is being made.
#[derive(Debug)]
pub(crate) struct Outgoing {
    to: NodeId,
    sent: u64,
    /// The epoch that it is made in.
    epoch: Epoch,
    /// The last record that was applied when it began.
    pub(crate) start: Position,
    encoder: Encoder,
    /// The operations up to here were sent.
    operations: Lsn,
    walk: Walk,
    /// How many parts were sent.
    parts: u32,
}

/// In whose name checksums of copies are made: who makes one, and who reads it, are not the same.
pub(crate) fn identity() -> Identity {
    Identity { node: NodeId::new("copy").expect("a name"), disk: DiskId(0) }
}

impl Outgoing {
    /// The next part, and the end of the copy and the digest then if it is the last.
    fn next(mut self, process: &Process, max_bytes: usize) -> (Vec<u8>, Result<Self, (Lsn, u64)>) {
        if let Some((part, upto)) = self.encoder.take_operations(&process.operations, self.operations, max_bytes) {
            self.operations = upto;
            return (part, Ok(self));
        }
        let push = &mut |key: &[u8], entry: Entry<'_>| self.encoder.push(key, entry);
        if self.walk.next_chunk(&process.table, max_bytes, push) {
            let end = process.applied.lsn;
            let part = self.encoder.finish(end, process.table.digest(), process.operations.digest());
            return (part, Err((end, process.digest())));
        }
        (self.encoder.take_chunk(), Ok(self))
    }
}

impl World {
    pub(crate) fn begin_copy(&mut self, place: Place, to: NodeId, sent: u64) -> Verdict {
        let Some(connection) = self.connection(place, to) else { return Ok(()) };
        self.coverage.note("copies begun", 1);
        let part = self.part_mut(place);
        let configuration = part.replica.as_ref().expect("who sends a copy").configuration().clone();
        let (epoch, partition) = (configuration.epoch, PartitionId(place.partition as u16));
        let start = part.disk.process.as_ref().expect("it is running").applied;
        let (encoder, bytes) = Encoder::new(identity(), &Header { cluster: CLUSTER, partition, configuration, start });
        let (operations, walk) = (Lsn(0), Walk::new());
        part.outgoing.insert(connection, Outgoing { to, sent, epoch, start, encoder, operations, walk, parts: 1 });
        self.send_on(connection, true, (epoch, PeerBody::CopyBegin { start, sent }));
        self.send_on(connection, true, (epoch, PeerBody::CopyPart { sent, number: 0, bytes }));
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
        let (to, sent, start, epoch, number) = (copy.to, copy.sent, copy.start, copy.epoch, copy.parts);
        copy.parts += 1;
        let (bytes, rest) = copy.next(part.disk.process.as_ref().expect("it is running"), max_bytes);
        self.send_on(connection, true, (epoch, PeerBody::CopyPart { sent, number, bytes }));
        match rest {
            Ok(copy) => {
                self.part_mut(place).outgoing.insert(connection, copy);
                self.go_on_with_copy(place, connection);
                Ok(())
            }
            Err((end, digest)) => {
                self.send_on(connection, true, (epoch, PeerBody::CopyEnd { sent, parts: number + 1, end, digest }));
                self.give(place, Event::CopySent { to, start })
            }
        }
    }
}
