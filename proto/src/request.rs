//! What clients ask.

use crate::ids::{NodeId, OperationId, PartitionId, Version};
use bincode::{BorrowDecode, Decode, Encode};
use std::num::NonZeroU64;

/// A request; keys and values borrow from the buffer that it was received in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub struct Request<'a> {
    /// How long the client waits, in milliseconds, counted from when the node reads the request.
    pub deadline_ms: u32,
    /// What identifies a write over all its attempts; it is kept in the record of the write.
    pub operation_id: Option<OperationId>,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Operation<'a> {
    /// The value of a key: [`crate::response::Response::Value`] or [`crate::response::Response::Missing`].
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// Sets a key: [`crate::response::Response::Written`] or [`crate::response::Response::ConditionFailed`].
    Put {
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// Its media type; empty says nothing about it.
        content_type: &'a str,
        /// When to do it.
        condition: Condition,
        /// How long the value lives once the leader has decided the write, in milliseconds; `None` is for ever.
        ttl_ms: Option<NonZeroU64>,
    },
    /// Removes a key: [`crate::response::Response::Written`], [`crate::response::Response::Missing`] or
    /// [`crate::response::Response::ConditionFailed`].
    Delete {
        /// The key.
        key: &'a [u8],
        /// When to do it.
        condition: Condition,
    },
    /// What the node knows of the cluster, and which of its executors owns what:
    /// [`crate::response::Response::Map`].
    Map,
    /// How the node and its replicas are: [`crate::response::Response::Stats`].
    Stats,
    /// Nothing: [`crate::response::Response::Pong`].
    Ping,
    /// A person's wish about a partition, to its leader: [`crate::response::Response::Accepted`].
    Admin(AdminCommand),
    /// What the node has on its disk: [`crate::response::Response::Report`].
    Report,
}

/// What a person wants to become of a partition. It is carried out after it was accepted, by a change of the
/// configuration, or not at all: the cluster map shows which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AdminCommand {
    /// Leadership passes to an in-sync follower; the leader follows it.
    Handoff {
        /// Of which partition.
        partition: PartitionId,
        /// To whom; `None` to any in-sync follower.
        to: Option<NodeId>,
    },
    /// The leader goes on without an in-sync follower, until that has caught up again.
    Drop {
        /// Of which partition.
        partition: PartitionId,
        /// Without whom.
        node: NodeId,
    },
}

impl AdminCommand {
    /// The partition that it is about.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        match *self {
            AdminCommand::Handoff { partition, .. } | AdminCommand::Drop { partition, .. } => partition,
        }
    }
}

impl<'a> Operation<'a> {
    /// The key that decides where the request goes; `None` where something else does, or any node can answer.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        match *self {
            Operation::Get { key } | Operation::Put { key, .. } | Operation::Delete { key, .. } => Some(key),
            Operation::Map | Operation::Stats | Operation::Ping | Operation::Admin(_) | Operation::Report => None,
        }
    }
}

/// When a write is to be done; decided by the leader, in the order of its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Condition {
    /// Whatever is there.
    #[default]
    Any,
    /// Only if the key has no value.
    Absent,
    /// Only if the key has a value.
    Present,
    /// Only if the key's value has this version.
    Version(Version),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec,
        ids::{ClientId, HistoryId, Lsn},
    };
    use proptest::prelude::*;

    fn hex(request: &Request) -> String {
        codec::encode(request).iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let get = Request { deadline_ms: 2000, operation_id: None, operation: Operation::Get { key: b"k" } };
        assert_eq!(hex(&get), "d0070000000000000001000000000000006b");
        let version = Version { history: HistoryId(1), lsn: Lsn(2) };
        let put = Request {
            deadline_ms: 1,
            operation_id: Some(OperationId { client: ClientId(3), sequence: 4, known_lsn: Lsn(5) }),
            operation: Operation::Put {
                key: b"k",
                value: b"v",
                content_type: "",
                condition: Condition::Version(version),
                ttl_ms: NonZeroU64::new(1500),
            },
        };
        assert_eq!(
            hex(&put),
            "01000000010300000000000000000000000000000004000000000000000500000000000000010000000100000000000000\
             6b0100000000000000760000000000000000030000000100000002000000000000 00 01dc05000000000000"
                .replace(' ', "")
        );
        let admin = |command| Request { deadline_ms: 1, operation_id: None, operation: Operation::Admin(command) };
        let (partition, node) = (PartitionId(2), NodeId::new("n").expect("a node id"));
        for (command, bytes) in [
            (AdminCommand::Handoff { partition, to: None }, "00000000 0200 00"),
            (AdminCommand::Handoff { partition, to: Some(node) }, "00000000 0200 01 0100000000000000 6e"),
            (AdminCommand::Drop { partition, node }, "01000000 0200 0100000000000000 6e"),
        ] {
            assert_eq!(hex(&admin(command)), format!("01000000 00 06000000 {bytes}").replace(' ', ""), "{command:?}");
            assert_eq!(command.partition(), partition);
        }
    }

    fn condition() -> impl Strategy<Value = Condition> {
        prop_oneof![
            Just(Condition::Any),
            Just(Condition::Absent),
            Just(Condition::Present),
            (any::<u32>(), any::<u64>())
                .prop_map(|(h, l)| Condition::Version(Version { history: HistoryId(h), lsn: Lsn(l) })),
        ]
    }

    proptest! {
        #[test]
        fn requests_survive_the_wire(
            deadline_ms in any::<u32>(), key in prop::collection::vec(any::<u8>(), 0..40),
            value in prop::collection::vec(any::<u8>(), 0..200), content_type in ".{0,20}", condition in condition(),
            ttl_ms in any::<u64>().prop_map(NonZeroU64::new), which in 0..9,
        ) {
            let operation = match which {
                0 => Operation::Get { key: &key },
                1 => Operation::Put { key: &key, value: &value, content_type: &content_type, condition, ttl_ms },
                2 => Operation::Delete { key: &key, condition },
                3 => Operation::Map,
                4 => Operation::Stats,
                5 => Operation::Admin(AdminCommand::Handoff { partition: PartitionId(deadline_ms as u16), to: None }),
                6 => Operation::Admin(AdminCommand::Drop {
                    partition: PartitionId(deadline_ms as u16),
                    node: NodeId::new("n").expect("a node id"),
                }),
                7 => Operation::Report,
                _ => Operation::Ping,
            };
            let request = Request { deadline_ms, operation_id: None, operation };
            let bytes = codec::encode(&request);
            prop_assert_eq!(codec::decode::<Request>(&bytes), Ok(request));
            for cut in 0..bytes.len() {
                prop_assert!(codec::decode::<Request>(&bytes[..cut]).is_err());
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = codec::decode::<Request>(&bytes);
        }
    }
}
