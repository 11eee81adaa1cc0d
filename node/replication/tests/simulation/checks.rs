//! What must hold after every step of the simulation, whatever happened before.

use crate::{
    disk::Disk,
    writes::{number, record_of},
};
use kv_proto::{
    ids::{Epoch, Lsn},
    replication::{Position, Record},
};
use kv_replication::replica::{LogEntry, Replica};
use kv_storage::table::Table;
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Verdict = Result<(), String>;

/// A violation, unless it holds.
pub(crate) fn ensure(holds: bool, violation: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(violation()) }
}

/// A record that somebody applied.
struct Committed {
    position: Position,
    number: u64,
    acknowledged: bool,
}

pub(crate) struct Checks {
    /// Whether acknowledged means on disk.
    durable: bool,
    /// All nodes, as bits.
    all: u8,
    /// What was applied anywhere, by LSN.
    history: Vec<Committed>,
    by_position: BTreeMap<Position, u64>,
    /// The digest of the table of who applied everything up to here.
    digests: BTreeMap<Position, u64>,
    /// Who led each epoch, and in which of its lives.
    leaders: BTreeMap<Epoch, (usize, u32)>,
    refused: BTreeSet<u64>,
    /// By write: the nodes that crashed since it was proposed, as bits.
    crashed: BTreeMap<u64, u8>,
    /// The newest epoch in which each node said anything.
    spoke: Vec<Epoch>,
}

impl Checks {
    pub(crate) fn new(durable: bool, nodes: usize) -> Self {
        Checks {
            durable,
            all: (1 << nodes) - 1,
            history: Vec::new(),
            by_position: BTreeMap::new(),
            digests: BTreeMap::from([(Position::default(), Table::default().digest())]),
            leaders: BTreeMap::new(),
            refused: BTreeSet::new(),
            crashed: BTreeMap::new(),
            spoke: vec![Epoch(0); nodes],
        }
    }

    /// In how many epochs somebody served.
    pub(crate) fn epochs_served(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// Whether a write may be lost: its only copies may have been in the memory of nodes that all crashed since.
    fn may_be_lost(&self, number: u64) -> bool {
        !self.durable && self.crashed.get(&number) == Some(&self.all)
    }

    pub(crate) fn propose(&mut self, number: u64) {
        self.crashed.insert(number, 0);
    }

    pub(crate) fn refuse(&mut self, number: u64) {
        self.refused.insert(number);
    }

    pub(crate) fn speak(&mut self, node: usize, epoch: Epoch) {
        self.spoke[node] = self.spoke[node].max(epoch);
    }

    /// A node has another disk: as a member it is another one.
    pub(crate) fn forget(&mut self, node: usize) {
        self.spoke[node] = Epoch(0);
    }

    pub(crate) fn crash(&mut self, node: usize) {
        self.crashed.values_mut().for_each(|crashed| *crashed |= 1 << node);
    }

    /// What was applied by somebody, and cannot be lost.
    pub(crate) fn committed_records(&self) -> Vec<Record> {
        self.history.iter().map(|c| record_of(c.position, c.number)).collect()
    }

    /// Whether a log has everything that is committed.
    pub(crate) fn has_all(&self, log: &[Record]) -> bool {
        let same = log.iter().zip(&self.history).all(|(record, committed)| record.position == committed.position);
        same && log.len() >= self.history.len()
    }

    /// Equal tables where the same was applied.
    fn table(&mut self, node: usize, applied: Position, digest: u64) -> Verdict {
        let other = *self.digests.entry(applied).or_insert(digest);
        ensure(other == digest, || format!("node {node} has another table than others at {applied}"))
    }

    /// A node found this on its disk, and this table, which has all of `applied`.
    pub(crate) fn restore(&mut self, node: usize, epoch: Epoch, applied: &[Record], digest: u64) -> Verdict {
        let end = applied.last().map(|r| r.position).unwrap_or_default();
        ensure(self.digests.contains_key(&end), || {
            format!("node {node} has applied up to {end}, and nobody else has")
        })?;
        self.table(node, end, digest)?;
        ensure(epoch >= self.spoke[node], || {
            format!("node {node} spoke in epoch {} and came back in {epoch}", self.spoke[node])
        })?;
        applied.iter().zip(&self.history).try_for_each(|(record, committed)| {
            let same = record.position == committed.position || self.may_be_lost(committed.number);
            ensure(same, || format!("node {node} came back with {} where another is committed", record.position))
        })
    }

    /// A node appends an entry to its log, which was `log` before.
    pub(crate) fn append(&mut self, node: usize, entry: &LogEntry, log: &[Record]) -> Verdict {
        match entry {
            LogEntry::Record(record) => {
                let number = number(record);
                ensure(*record == record_of(record.position, number), || format!("{record:?} was never written"))?;
                let other = *self.by_position.entry(record.position).or_insert(number);
                ensure(other == number, || format!("{} is two records: {other} and {number}", record.position))
            }
            LogEntry::Cut { from } => log[from.0 as usize - 1..].iter().try_for_each(|record| {
                let committed = self.history.get(record.position.lsn.0 as usize - 1);
                let cut = committed.is_some_and(|c| c.position == record.position && !self.may_be_lost(c.number));
                ensure(!cut, || format!("node {node} cuts {}, which is committed", record.position))
            }),
            LogEntry::Configuration(_) => Ok(()),
        }
    }

    /// A node applies a record, after which its table has this digest.
    pub(crate) fn apply(&mut self, node: usize, record: &Record, digest: u64) -> Verdict {
        self.table(node, record.position, digest)?;
        let (position, number) = (record.position, number(record));
        let at = position.lsn.0 as usize - 1;
        ensure(!self.refused.contains(&number), || format!("write {number} was refused and is applied"))?;
        ensure(at <= self.history.len(), || format!("node {node} applies {position} before what is before it"))?;
        if let Some(committed) = self.history.get(at) {
            if committed.position == position {
                return Ok(());
            }
            let lost = self.history[at..].iter().all(|c| self.may_be_lost(c.number));
            ensure(lost, || format!("node {node} applies {position} where {} is committed", committed.position))?;
            self.history.truncate(at);
        }
        self.history.push(Committed { position, number, acknowledged: false });
        Ok(())
    }

    /// A leader says that a write is committed.
    pub(crate) fn acknowledge(&mut self, written: u64, members: &[(usize, &Disk)]) -> Verdict {
        let committed = self.history.iter_mut().find(|c| c.number == written);
        let Some(committed) = committed else { return Err(format!("write {written} is acknowledged, not applied")) };
        committed.acknowledged = true;
        let position = committed.position;
        let at = position.lsn.0 as usize - 1;
        members.iter().try_for_each(|(node, disk)| {
            let has = disk.durable().get(at).is_some_and(|r| r.position == position);
            ensure(has || !self.durable, || format!("{position} is acknowledged, and not on the disk of {node}"))
        })
    }

    /// What holds for a replica at any moment.
    pub(crate) fn replica(&self, node: usize, replica: &Replica, disk: &Disk) -> Verdict {
        let flushed = replica.flushed().0 as usize;
        let live = disk.live();
        let last = live.last().map(|r| r.position).unwrap_or_default();
        ensure(replica.prepared() == last, || format!("node {node} has another log than its disk: {last}"))?;
        let on_disk = disk.durable().len() >= flushed
            && flushed.checked_sub(1).is_none_or(|at| disk.durable()[at].position == live[at].position);
        ensure(on_disk || !self.durable, || format!("node {node} takes {flushed} records for flushed"))
    }

    /// What holds for a leader that serves.
    pub(crate) fn leader(
        &mut self,
        (node, life): (usize, u32),
        replica: &Replica,
        members: &[(usize, &Disk, Option<&Replica>)],
    ) -> Verdict {
        let (epoch, committed) = (replica.configuration().epoch, replica.committed());
        let leads = *self.leaders.entry(epoch).or_insert((node, life));
        ensure(leads == (node, life), || format!("epoch {epoch} was led by {leads:?}, and now by {:?}", (node, life)))?;
        let missing = self.history.iter().skip(committed.0 as usize).find(|c| c.acknowledged);
        if let Some(missing) = missing.filter(|c| !self.may_be_lost(c.number)) {
            let position = missing.position;
            return Err(format!("node {node} serves in epoch {epoch} without {position}, which was acknowledged"));
        }
        let Some(at) = committed.0.checked_sub(1).filter(|_| self.durable) else { return Ok(()) };
        let position = self.history[at as usize].position;
        for (member, disk, follower) in members {
            let has = disk.durable().get(at as usize).is_some_and(|r| r.position == position);
            ensure(has, || format!("{position} is committed in epoch {epoch}, and not on the disk of {member}"))?;
            let behind = follower.is_none_or(|f| f.configuration().epoch != epoch || f.committed() <= committed);
            ensure(behind, || format!("node {member} has committed more than its leader, {committed}"))?;
        }
        Ok(())
    }

    /// What holds at the end for a member of the last configuration.
    pub(crate) fn settled(&self, node: usize, replica: &Replica) -> Verdict {
        let all = Lsn(self.history.len() as u64);
        let settled = replica.committed() == all && replica.prepared().lsn == all;
        ensure(settled, || format!("node {node} has {} of {all} in the end: {replica:?}", replica.committed()))
    }
}
