//! What clients are answered.

use crate::{
    cluster_map::ClusterMap,
    error_code::WireError,
    ids::{Epoch, ExecutorIndex, PartitionId, Version},
    report::NodeReport,
    stats::NodeStats,
};
use bincode::{BorrowDecode, Decode, Encode};
use std::num::NonZeroU64;

/// A response; a value borrows from the buffer that it was received in. What is large and rare is boxed: responses are moved often.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub enum Response<'a> {
    /// A key's value.
    Value {
        /// Who answered.
        at: Answered,
        /// The value's version.
        version: Version,
        /// How long it lives yet, in milliseconds; `None` is for ever.
        expires_in_ms: Option<NonZeroU64>,
        /// Its media type; empty says nothing about it.
        content_type: &'a str,
        /// The value.
        value: &'a [u8],
    },
    /// The key has no value.
    Missing {
        /// Who answered.
        at: Answered,
    },
    /// The write was committed.
    Written {
        /// Who answered.
        at: Answered,
        /// The version that the write gave to the key.
        version: Version,
    },
    /// The condition did not hold; nothing was written.
    ConditionFailed {
        /// Who answered.
        at: Answered,
        /// The version of the value that is there instead.
        current: Option<Version>,
    },
    /// What the node knows of the cluster.
    Map(Box<NodeView>),
    /// How the node is.
    Stats(Box<NodeStats>),
    /// The node is there.
    Pong,
    /// The request failed.
    Error(WireError),
    /// The write was not done now, and whether an earlier attempt with its operation id was cannot be told any more. To a
    /// first attempt that is a refusal: the write may be asked for again with a new id that knows this version.
    TooOld {
        /// Who answered.
        at: Answered,
        /// The last record of the partition that is committed.
        committed: Version,
    },
    /// The leader sets about what an [`crate::request::AdminCommand`] asks for.
    Accepted {
        /// Who answered, and in which epoch it was then: what was asked for is another.
        at: Answered,
    },
    /// What the node has on its disk.
    Report(Box<NodeReport>),
}

/// Which partition answered, and in which epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Answered {
    /// The key's partition.
    pub partition: PartitionId,
    /// The epoch that its leader is in.
    pub epoch: Epoch,
}

/// What a node knows of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeView {
    /// The cluster map; `None` until the controller has told it.
    pub map: Option<ClusterMap>,
    /// Which executor of this node owns which of its partitions.
    pub owners: Vec<(PartitionId, ExecutorIndex)>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        codec,
        error_code::ErrorCode,
        ids::{HistoryId, Lsn},
    };
    use proptest::prelude::*;

    #[test]
    fn answers_to_reads_and_writes_are_small() {
        assert!(size_of::<Response<'_>>() <= 80, "{}", size_of::<Response<'_>>());
    }

    #[test]
    fn golden_bytes() {
        let response = Response::Value {
            at: Answered { partition: PartitionId(1), epoch: Epoch(2) },
            version: Version { history: HistoryId(3), lsn: Lsn(4) },
            expires_in_ms: NonZeroU64::new(5),
            content_type: "t",
            value: b"v",
        };
        let hex: String = codec::encode(&response).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "000000000100020000000000000003000000040000000000000001050000000000000001000000000000\
             0074010000000000000076"
        );
        let accepted = Response::Accepted { at: Answered { partition: PartitionId(1), epoch: Epoch(2) } };
        let hex: String = codec::encode(&accepted).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0900000001000200000000000000");
    }

    #[test]
    fn golden_bytes_of_what_is_too_old() {
        let at = Answered { partition: PartitionId(1), epoch: Epoch(2) };
        let response = Response::TooOld { at, committed: Version { history: HistoryId(3), lsn: Lsn(4) } };
        let bytes = codec::encode(&response);
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0800000001000200000000000000030000000400000000000000");
        assert_eq!(codec::decode::<Response>(&bytes), Ok(response));
    }

    #[test]
    fn errors_survive_the_wire() {
        for code in ErrorCode::ALL {
            let response = Response::Error(WireError::new(*code, "why"));
            let bytes = codec::encode(&response);
            assert_eq!(codec::decode::<Response>(&bytes), Ok(response));
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = codec::decode::<Response>(&bytes);
        }
    }
}
