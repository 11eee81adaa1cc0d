//! Bytes between this node and everyone else.
//!
//! [`connection`] turns bytes into messages and knows no socket, [`socket`] moves bytes and knows no message.

pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod socket;
