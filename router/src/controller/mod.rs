//! The controller: keeps the cluster map, and arbitrates between replicas that want to change it.
//!
//! [`config_store`] is the only door to the map; `server.rs` lets nodes through it. Behind it the controllers, one or three, agree
//! by Raft (`raft/`). The controller decides nothing by
//! itself but the first configuration of each partition: the replicas propose, and it checks (the pure part is
//! `kv_replication::cluster`). It is never on the path of data: while it is gone, everything that needs no change
//! goes on.

mod begin;
pub mod config_store;
mod connection;
pub mod error;
mod kept;
mod old_file;
mod raft;
pub(crate) mod server;
mod settled;

pub(crate) use begin::begin_with;
