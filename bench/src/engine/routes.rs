//! The plan that all threads follow, and how it follows the cluster: when a request meets trouble, the nodes are asked anew who
//! leads what.

use super::{
    cluster::{self, Cluster},
    plan::Plan,
};
use crate::lock::lock;
use kv_client::proto::ids::NodeId;
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Pause between questions.
const PAUSE: Duration = Duration::from_millis(20);
/// What fails in these words may go well at another node.
const TROUBLE: [&str; 6] =
    ["not_leader", "not_ready", "shutting_down", "unreachable", "connection_lost", "deadline_exceeded"];

pub(crate) struct Routes {
    version: AtomicU64,
    plan: Mutex<Arc<Plan>>,
    /// What the plan is of; `None` where there is nothing to follow.
    cluster: Mutex<Option<Cluster>>,
    /// Only what this node leads is asked for.
    only: Option<NodeId>,
    trouble: Notify,
}

impl Routes {
    /// A plan that never changes.
    pub(crate) fn fixed(plan: Plan) -> Routes {
        Routes::new(plan, None, None)
    }

    /// The plan of a cluster, which [`Routes::follow`] keeps true.
    pub(crate) fn of_cluster(plan: Plan, cluster: Cluster, only: Option<NodeId>) -> Routes {
        Routes::new(plan, Some(cluster), only)
    }

    fn new(plan: Plan, cluster: Option<Cluster>, only: Option<NodeId>) -> Routes {
        let plan = Mutex::new(Arc::new(plan));
        Routes { version: AtomicU64::new(0), plan, cluster: Mutex::new(cluster), only, trouble: Notify::new() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    pub(crate) fn current(&self) -> (u64, Arc<Plan>) {
        let plan = lock(&self.plan);
        (self.version(), Arc::clone(&plan))
    }

    /// Whether a failure in this word may be one of the plan.
    pub(crate) fn is_trouble(&self, code: &str) -> bool {
        TROUBLE.contains(&code)
    }

    /// Somebody has met trouble.
    pub(crate) fn trouble(&self) {
        self.trouble.notify_one();
    }

    /// Asks the nodes whenever somebody has met trouble, for ever.
    pub(crate) async fn follow(&self) {
        loop {
            self.trouble.notified().await;
            let known = lock(&self.cluster).clone();
            let Some(known) = known else { return std::future::pending().await };
            let nodes = known.map.nodes.iter();
            let addresses: BTreeSet<_> = nodes.filter_map(|node| node.address.parse().ok()).collect();
            if let Some(cluster) = cluster::ask_all(addresses, Some(&known)).await
                && let Ok(plan) = Plan::of_map(&cluster.map, &cluster.owners, self.only)
            {
                *lock(&self.cluster) = Some(cluster);
                let mut current = lock(&self.plan);
                if **current != plan {
                    *current = Arc::new(plan);
                    self.version.fetch_add(1, Relaxed);
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
