//! Doors for the fuzz targets (`cfg(fuzzing)` only).

use crate::transport::connection::{Connection, Role};
use kv_proto::{
    ids::{DiskId, ExecutorIndex, Member, NodeId},
    limits::Limits,
};

/// A connection in each of its roles is given whatever arrives, in two pieces.
pub fn connection(bytes: &[u8], cut: usize) {
    let member = Member { node: NodeId::new("peer").expect("a name"), disk: DiskId(1) };
    let out = Role::PeerOut { member, executor: ExecutorIndex(0) };
    for role in [Role::Stranger, Role::Client, Role::PeerIn { member }, out, Role::Controller] {
        let mut connection = Connection::new(role, Limits::default());
        let mut start = 0;
        for end in [cut.min(bytes.len()), bytes.len()] {
            while let Ok((used, input)) = connection.receive(&bytes[start..end]) {
                start += used;
                if input.is_none() {
                    break;
                }
            }
        }
    }
}
