//! What a node has on its disk, for who makes the cluster map anew after the controller lost it.

use crate::{
    cluster_map::{ClusterMap, Configuration, Node},
    ids::{ClusterId, PartitionId},
    replication::Position,
};
use bincode::{Decode, Encode};

/// What a node knows and has.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NodeReport {
    /// The cluster that its data belong to.
    pub cluster: Option<ClusterId>,
    /// The node, as it registers.
    pub node: Node,
    /// Whether it has a connection to a controller, from which it may learn more than this.
    pub has_controller: bool,
    /// The map that it was told last; none since it started.
    pub map: Option<ClusterMap>,
    /// What it has of partitions, in their order.
    pub replicas: Vec<ReplicaReport>,
}

/// What a node has of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReplicaReport {
    /// The partition.
    pub partition: PartitionId,
    /// The newest configuration that it took part in.
    pub configuration: Option<Configuration>,
    /// Its last record.
    pub last: Position,
    /// Why its data cannot be used, if they cannot.
    pub fault: Option<String>,
}
