//! What replicas of a partition say to each other, and the records that they keep.

pub use crate::effect::{Effect, EffectError, Expiry};
use crate::ids::{Epoch, Lsn, OperationId, PartitionId};
use bincode::{Decode, Encode};
use std::{fmt, sync::Arc};

/// Where a record stands: the epoch in which it was made and its LSN. Greater means later; two records with the
/// same position are the same record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Position {
    /// The epoch of the leader that made the record.
    pub epoch: Epoch,
    /// Its LSN.
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "(epoch {}, LSN {})", self.epoch, self.lsn)
    }
}

/// A record of a partition's log.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Record {
    /// Where it stands.
    pub position: Position,
    /// The operation that it answers.
    pub operation_id: Option<OperationId>,
    /// An encoded [`Effect`]; shared, because the log, the followers' streams and the table each need it.
    pub payload: Arc<[u8]>,
}

impl Record {
    /// What the record takes in a message at most, in bytes.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        /// Position, operation id and lengths, rounded up.
        const OVERHEAD_BYTES: usize = 64;
        self.payload.len() + OVERHEAD_BYTES
    }
}

/// The [`PeerBatch::room`] of a log whose disk is late; a full one says at least one more.
pub const TAKES_NOTHING: u64 = 0;

/// All that one executor has to tell an executor of a peer at one moment, over all partitions that they share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PeerBatch {
    /// How many bytes of records the sender's log still has room for; the greatest number while its disk is not full, and
    /// [`TAKES_NOTHING`] while its disk does not take what it was given.
    pub room: u64,
    /// In the order in which they were said.
    pub messages: Vec<PeerMessage>,
}

/// A message from one replica to another of the same partition.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerMessage {
    /// The partition.
    pub partition: PartitionId,
    /// The epoch that the sender is in; a message of another epoch than the receiver's changes nothing.
    pub epoch: Epoch,
    /// What it says.
    pub body: PeerBody,
}

/// What one replica says to another.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PeerBody {
    /// Leader to follower: take these records, which follow `previous`.
    Prepare {
        /// The position of the record before the first; taken only by who has it as its last, or past it.
        previous: Position,
        /// Everything up to here is committed.
        committed: Lsn,
        /// The records, dense.
        records: Vec<Record>,
    },
    /// Leader to follower, every beacon interval and first of all on a new connection: are you there?
    Beacon {
        /// Everything up to here is committed.
        committed: Lsn,
        /// When it was sent, in nanoseconds of the leader's clock; means nothing to anybody else.
        sent: u64,
        /// Whether the leader serves: all that it adopted is committed.
        serving: bool,
    },
    /// Follower to leader: the answer to both, and to a Prepare once its records are flushed.
    Report {
        /// The last record that it has.
        prepared: Position,
        /// Everything up to here is on its disk.
        flushed: Lsn,
        /// Everything up to here is in its table.
        applied: Lsn,
        /// When the newest beacon that it answered was sent: for a while from its answer on, it follows no other leader.
        /// 0 before it answered any.
        answers: u64,
        /// What its log stands on.
        basis: Basis,
    },
    /// Follower to leader: a Prepare does not follow what is here.
    Gap {
        /// The last record that it has.
        prepared: Position,
    },
    /// New leader to the follower that has the greatest last record: what do you have after this one?
    Fetch {
        /// The last record that the leader is to keep, as far as it knows.
        after: Position,
    },
    /// Follower to new leader: the answer to a Fetch.
    Tail {
        /// The position of the record before the first; what was asked for if it is here, else one before it.
        previous: Position,
        /// The records, dense; a part of what follows. None if the log does not reach back so far.
        records: Vec<Record>,
        /// The last record that it has.
        last: Position,
    },
    /// Old leader to the leader of the next epoch, in the name of the old epoch: nothing is served in it any more.
    Resign,
    /// Leader to learner: a copy of the table follows. Whatever the learner has is void.
    CopyBegin {
        /// Everything up to here is in the copy.
        start: Position,
        /// When it was decided on, among the beacons: a copy is not begun late.
        sent: u64,
    },
    /// A part of the copy.
    CopyPart {
        /// Of which copy: what its [`PeerBody::CopyBegin`] has.
        sent: u64,
        /// Its number, from 0 on.
        number: u32,
        /// Entries or operations, as a checkpoint has them.
        bytes: Vec<u8>,
    },
    /// The end of the copy.
    CopyEnd {
        /// Of which copy: what its [`PeerBody::CopyBegin`] has.
        sent: u64,
        /// How many parts there are.
        parts: u32,
        /// Some of what was written up to here is in the copy: with all of it, the table is whole.
        end: Lsn,
        /// The digest of the table and of the operations then.
        digest: u64,
    },
}

/// What the log of a replica stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Basis {
    /// A table that is on its disk.
    Table,
    /// A copy of a table that is not on its disk yet.
    Copy,
    /// Nothing: what it has cannot be used, it needs a copy of the table.
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{codec, ids::ClientId};
    use proptest::prelude::*;

    #[test]
    fn golden_bytes() {
        let record = Record {
            position: Position { epoch: Epoch(1), lsn: Lsn(2) },
            operation_id: Some(OperationId { client: ClientId(3), sequence: 4, known_lsn: Lsn(0) }),
            payload: Effect::Put { key: b"k", content_type: "", value: b"v", expires: None }.encode().into(),
        };
        let message = PeerMessage {
            partition: PartitionId(7),
            epoch: Epoch(1),
            body: PeerBody::Prepare {
                previous: Position { epoch: Epoch(1), lsn: Lsn(1) },
                committed: Lsn(1),
                records: vec![record.clone()],
            },
        };
        assert!(codec::encode(&record).len() <= record.wire_bytes());
        let bytes = codec::encode(&PeerBatch { room: 5, messages: vec![message.clone()] });
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "050000000000000001000000000000000700010000000000000000000000010000000000000001000000000000000100000000000000010000\
             000000000001000000000000000200000000000000010300000000000000000000000000000004000000000000000000\
             0000000000000e00000000000000010001000000000000000000 6b76"
                .replace(' ', "")
        );
        assert_eq!(codec::decode::<PeerBatch>(&bytes).map(|b| b.messages), Ok(vec![message]));
    }

    #[test]
    fn golden_bytes_of_what_a_new_leader_asks() {
        let position = |epoch, lsn| Position { epoch: Epoch(epoch), lsn: Lsn(lsn) };
        let record = Record { position: position(2, 4), operation_id: None, payload: [0xEE].into() };
        let cases = [
            (PeerBody::Fetch { after: position(2, 3) }, "0400000002000000000000000300000000000000"),
            (
                PeerBody::Tail { previous: position(1, 3), records: vec![record], last: position(2, 9) },
                "050000000100000000000000030000000000000001000000000000000200000000000000040000000000000000\
                 0100000000000000ee02000000000000000900000000000000",
            ),
        ];
        for (body, golden) in cases {
            let bytes = codec::encode(&body);
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            assert_eq!(hex, golden);
            assert_eq!(codec::decode::<PeerBody>(&bytes), Ok(body));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = codec::decode::<PeerBatch>(&bytes);
        }
    }
}
