//! The wire of the key-value store.
//!
//! Everything that two processes say to each other, and nothing of how the bytes travel: frames, client
//! requests and responses, messages between replicas, messages between nodes and the controller, the
//! cluster map and the routing of keys. `docs/protocol.md` gives the bytes.
//!
//! # Invariants
//! * No runtime, no socket, no clock, no file: functions of bytes and values only.
//! * Bytes from the network never panic and never allocate before a length was checked against a limit.
//! * [`codec`] is the only module that knows bincode, [`frame`] the only one that knows the header, [`effect`] the only one
//!   that knows the payload of a record.
//! * What the bytes mean is fixed by the golden tests beside each module; a change of meaning is a new
//!   [`frame::PROTOCOL_VERSION`].

pub mod cluster_map;
pub mod codec;
pub mod control;
pub mod effect;
pub mod error_code;
pub mod frame;
pub mod hello;
pub mod ids;
pub mod limits;
pub mod replication;
pub mod report;
pub mod request;
pub mod response;
pub mod routing;
pub mod sealed_json;
pub mod stats;
