//! Identities and positions, each a type of its own so that one can never be taken for another.

use bincode::{
    BorrowDecode, Decode, Encode,
    de::{BorrowDecoder, Decoder},
    enc::Encoder,
    error::{DecodeError, EncodeError},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Written as 32 hexadecimal digits.
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(InvalidId(format!("{text:?} is not 32 hexadecimal digits")));
                }
                u128::from_str_radix(text, 16).map($name).map_err(|e| InvalidId(e.to_string()))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

number! {
    /// A partition: a fixed share of the keys, the unit of ownership, replication and recovery.
    PartitionId(u16)
}
number! {
    /// A pair (or more) of nodes that host the same partitions.
    ShardId(u16)
}
number! {
    /// Version of one partition's configuration; grows with every change of it. The first is 1.
    Epoch(u64)
}
number! {
    /// Dense position of a record in one partition's log; the first record has 1, 0 is "nothing yet".
    Lsn(u64)
}
number! {
    /// Version of the whole cluster map; grows with every change of any part of it.
    MapVersion(u64)
}
number! {
    /// Changes when a person forces recovery with loss; part of every version and ETag.
    HistoryId(u32)
}
number! {
    /// One glommio thread of a node, counted from 0.
    ExecutorIndex(u16)
}

random_id! {
    /// A cluster, made with its first cluster map.
    ClusterId
}
random_id! {
    /// What a node remembers by: made together with its data, and gone with them.
    DiskId
}
random_id! {
    /// A client, made when it starts; the first half of an [`OperationId`].
    ClientId
}

/// 128-bit numbers in JSON, where numbers of that size are lost on most readers: as 32 hexadecimal digits.
pub mod hex {
    use super::ClientId;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    /// Writes the digits.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        ClientId(*number).serialize(serializer)
    }

    /// Reads the digits.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        ClientId::deserialize(deserializer).map(|id| id.0)
    }
}

impl Lsn {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Lsn(self.0 + 1)
    }
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Epoch(self.0 + 1)
    }
}

/// A text that is not the id it should be; the message says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidId(String);

/// The name of a node: 1 to 31 ASCII letters, digits, `-`, `_` or `.`; held inline, so that it is as cheap
/// to copy as a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    bytes: [u8; Self::MAX_LENGTH],
    length: u8,
}

impl NodeId {
    /// Longest name, in bytes.
    pub const MAX_LENGTH: usize = 31;

    /// Checks a name.
    ///
    /// # Errors
    /// When the name is empty, too long, or has a character that is not allowed.
    pub fn new(name: &str) -> Result<Self, InvalidId> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > Self::MAX_LENGTH || !name.bytes().all(allowed) {
            return Err(InvalidId(format!(
                "{name:?} is not a node id: 1 to {} letters, digits, '-', '_' or '.'",
                Self::MAX_LENGTH
            )));
        }
        let mut bytes = [0; Self::MAX_LENGTH];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Ok(NodeId { bytes, length: name.len() as u8 })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).expect("a node id is ASCII")
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = InvalidId;

    fn from_str(name: &str) -> Result<Self, InvalidId> {
        Self::new(name)
    }
}

impl Encode for NodeId {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.as_str().encode(encoder)
    }
}

fn node_id_from_wire(name: &str) -> Result<NodeId, DecodeError> {
    NodeId::new(name).map_err(|e| DecodeError::OtherString(e.to_string()))
}

impl<Context> Decode<Context> for NodeId {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        node_id_from_wire(&String::decode(decoder)?)
    }
}

impl<'de, Context> BorrowDecode<'de, Context> for NodeId {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        node_id_from_wire(<&str>::borrow_decode(decoder)?)
    }
}

impl Serialize for NodeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NodeId::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A replica in a partition's configuration: a node together with the disk that it had when it was admitted,
/// so that a node that lost its data is never taken for the member that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// The disk that makes it a member.
    pub disk: DiskId,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (disk {})", self.node, self.disk)
    }
}

/// What identifies one write of one client over all its attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct OperationId {
    /// Who asks.
    pub client: ClientId,
    /// Grows by one with every operation of this client.
    pub sequence: u64,
    /// Greatest LSN of the partition that the client knew at its first attempt; bounds how far back an
    /// answer to this id can lie.
    pub known_lsn: Lsn,
}

/// The version of a value: the LSN that wrote it, within a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version {
    /// The history in which the LSN counts.
    pub history: HistoryId,
    /// The record that wrote the value.
    pub lsn: Lsn,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.history, self.lsn)
    }
}

impl FromStr for Version {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let parse = |text: &str| {
            let (history, lsn) = text.split_once('-')?;
            Some(Version { history: HistoryId(history.parse().ok()?), lsn: Lsn(lsn.parse().ok()?) })
        };
        parse(text).ok_or_else(|| InvalidId(format!("{text:?} is not a version: HISTORY-LSN, as in 0-17")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn node_ids_are_checked_wherever_they_come_from() {
        for good in ["a", "shard0-leader", "x.y_z-9", &"n".repeat(31)] {
            assert_eq!(NodeId::new(good).expect(good).as_str(), good);
        }
        for bad in ["", "a b", "ä", "a/b", &"n".repeat(32)] {
            assert!(NodeId::new(bad).is_err(), "{bad:?}");
            assert!(codec::decode::<NodeId>(&codec::encode(&bad.to_string())).is_err(), "{bad:?}");
            assert!(serde_json::from_value::<NodeId>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn random_ids_survive_text_and_reject_the_rest() {
        let id = DiskId(0x1234_5678_9abc_def0);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "12", "+0000000000000000000000000000000", "zz345678123456781234567812345678"] {
            assert!(bad.parse::<DiskId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions_are_read_back_from_their_text() {
        let version = Version { history: HistoryId(3), lsn: Lsn(1 << 40) };
        assert_eq!(version.to_string(), "3-1099511627776");
        assert_eq!(version.to_string().parse(), Ok(version));
        for bad in ["", "3", "-", "3-", "a-1", "3-1-1"] {
            assert!(bad.parse::<Version>().is_err(), "{bad:?}");
        }
    }
}
