//! The report of what the node has: each executor adds the replicas that it owns, and the disk what nobody owns.
//!
//! Only the first executor has the connection to the controller, and it learns of every map before the others: that it
//! has no connection and knows no newer map is what makes a report one that nothing can follow.

use super::{Executor, forward::Mail, requests::Origin};
use kv_proto::{
    cluster_map::{ClusterMap, Node},
    ids::ExecutorIndex,
    report::{NodeReport, ReplicaReport},
    response::Response,
};
use std::sync::{Arc, Mutex, PoisonError};

/// A report on its way through all executors.
pub(crate) struct Reporting {
    origin: Origin,
    inner: Mutex<Collected>,
}

#[derive(Default)]
struct Collected {
    added: usize,
    replicas: Vec<ReplicaReport>,
    has_controller: bool,
    map: Option<ClusterMap>,
}

impl Executor {
    /// The node as it registers.
    pub(super) fn registration(&self) -> Node {
        let (shared, settings) = (&self.shared, &self.shared.settings);
        Node {
            id: shared.me.node,
            disk: shared.me.disk,
            shard: settings.shard,
            prefers_to_lead: settings.prefers_to_lead,
            address: settings.advertised.clone(),
            executors: shared.mail.len() as u16,
        }
    }

    pub(super) fn collect_report(&mut self, origin: Origin) {
        self.expect_answer(origin.line);
        let reporting = Arc::new(Reporting { origin, inner: Mutex::default() });
        for mail in &self.shared.mail {
            mail.send(Mail::Report(reporting.clone()));
        }
    }

    /// Adds what this executor has.
    pub(super) fn add_report(&mut self, reporting: &Arc<Reporting>) {
        let mut collected = reporting.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let replicas = self.owned.iter().filter_map(|id| self.partitions[usize::from(id.0)].as_ref());
        collected.replicas.extend(replicas.map(|p| ReplicaReport {
            partition: p.replica.partition(),
            configuration: Some(p.replica.configuration().clone()),
            last: p.replica.prepared(),
            fault: None,
        }));
        if self.index == ExecutorIndex(0) {
            collected.has_controller = self.controller.is_some();
            collected.map = self.view.as_ref().map(|view| view.map.clone());
        }
        collected.added += 1;
        if collected.added == self.shared.mail.len() {
            let asked = usize::from(reporting.origin.executor.0);
            self.shared.mail[asked].send(Mail::Reported(reporting.clone()));
        }
    }

    pub(super) fn answer_report(&mut self, reporting: &Reporting) {
        let collected = std::mem::take(&mut *reporting.inner.lock().unwrap_or_else(PoisonError::into_inner));
        let mut replicas = collected.replicas;
        // Whoever owns a partition by now has added it.
        let unowned = self.shared.storage.report_restored();
        let owned: Vec<_> = replicas.iter().map(|r| r.partition).collect();
        replicas.extend(unowned.into_iter().filter(|r| !owned.contains(&r.partition)));
        replicas.sort_by_key(|r| r.partition);
        let report = NodeReport {
            cluster: self.shared.storage.cluster(),
            node: self.registration(),
            has_controller: collected.has_controller,
            map: collected.map,
            replicas,
        };
        self.handle_answered(reporting.origin.line);
        self.answer(reporting.origin, &Response::Report(Box::new(report)));
    }
}
