//! The pure core of replication.
//!
//! What a replica does ([`replica`]), which changes of a configuration are allowed ([`configuration`]), and where
//! partitions live ([`placement`]). The same code runs under glommio in production and under the tests.
//!
//! # Invariants
//! * No async, no I/O, no clock, no randomness: time and everything else comes in as an argument, what is to be
//!   done goes out as a value. A test reads the sources and holds this.
//! * Concrete types only; whoever embeds a replica carries out its [`replica::Action`]s in their order.

pub mod clock;
pub mod cluster;
pub mod configuration;
pub mod placement;
pub mod rebuild;
pub mod replica;
