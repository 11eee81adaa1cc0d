//! Doors for the fuzz targets (`cfg(fuzzing)` only).

use crate::transport::connection::{Connection, Role};
use kv_proto::{
    ids::{DiskId, ExecutorIndex, NodeId},
    limits::Limits,
};

/// A connection in each of its roles is given whatever arrives, in two pieces.
pub fn connection(bytes: &[u8], cut: usize) {
    let node = NodeId::new("peer").expect("a name");
    let out = Role::PeerOut { node, disk: DiskId(1), executor: ExecutorIndex(0) };
    for role in [Role::Stranger, Role::Client, Role::PeerIn { node }, out, Role::Controller] {
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
