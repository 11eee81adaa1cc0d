//! The first message of a connection and its answer.
//!
//! Nothing follows a [`Hello`] until it is answered, so that the node can move the socket to the executor that
//! the caller wants. A hello that is not accepted is answered by a [`crate::frame::Kind::Refusal`] and the
//! connection closes.

use crate::{
    ids::{ClusterId, DiskId, ExecutorIndex, NodeId},
    limits::Limits,
};
use bincode::{Decode, Encode};

/// Longest body of a hello, in bytes; all that a stranger can make a node hold.
pub const MAX_HELLO_BYTES: usize = 4 * 1024;

/// Who calls, and what it wants.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The cluster that the caller means; `None` takes any.
    pub cluster: Option<ClusterId>,
    /// Who calls.
    pub caller: Caller,
    /// The executor that shall serve the connection; `None` takes any.
    pub executor: Option<ExecutorIndex>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Caller {
    /// Something that sends client requests.
    Client,
    /// An executor of another node, to stream what its partitions prepare.
    Peer {
        /// The calling node.
        node: NodeId,
        /// Its disk.
        disk: DiskId,
    },
    /// A node that calls the controller.
    Node,
    /// A controller that calls another one of its cluster. Answered with the called controller's own id as the disk.
    Controller,
}

/// The answer to an accepted hello.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// The cluster, once the node has learned it.
    pub cluster: Option<ClusterId>,
    /// The answering node; a controller answers with the name of its router.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// The executor that serves this connection from now on.
    pub executor: ExecutorIndex,
    /// How many executors the node has.
    pub executors: u16,
    /// What the node takes.
    pub limits: Limits,
}
