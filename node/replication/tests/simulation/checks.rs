//! What must hold for a partition, whatever happened before: the invariants of the protocol, seen from outside of all replicas.
//!
//! Of a replica they are checked after every event that it is given, and over all replicas of the partition then.

use crate::{
    disk::{Disk, expected::Log},
    writes::{MAX_VALUE_BYTES, number, record_of},
};
use kv_proto::{
    ids::{Epoch, Lsn, Member},
    replication::{Basis, PeerBody, Position, Record},
};
use kv_replication::replica::{LogEntry, Replica};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) type Verdict = Result<(), String>;

/// A violation, unless it holds.
pub(crate) fn ensure(holds: bool, violation: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(violation()) }
}

/// A node, in one of its lives.
pub(crate) type Life = (usize, u32);

/// A record that somebody applied.
struct Committed {
    position: Position,
    number: Option<u64>,
    acknowledged: bool,
    /// Its last copy was in the memory of a process that ended, or a person gave it up; unless it turns up again. So is what
    /// follows it.
    lost: bool,
}

/// What is checked of a partition.
pub(crate) struct Checks {
    /// Whether acknowledged means on disk.
    durable: bool,
    /// What was applied anywhere, by LSN.
    history: Vec<Committed>,
    /// Where writes were applied.
    applied: BTreeMap<u64, Lsn>,
    by_position: BTreeMap<Position, Option<u64>>,
    /// The digest of the table of who applied everything up to here.
    digests: BTreeMap<Position, u64>,
    /// Who led each epoch.
    leaders: BTreeMap<Epoch, Life>,
    /// The newest epoch in which anybody served.
    served: Epoch,
    epochs_served: BTreeSet<Epoch>,
    /// How often each write was proposed, without the proposals that were refused.
    proposed: BTreeMap<u64, u64>,
    /// The newest epoch in which each node said anything.
    spoke: Vec<Epoch>,
    /// Who asked to take over, and from which epoch.
    asked: BTreeSet<(Life, Epoch)>,
    /// Whom the leader of an epoch asked to add.
    adding: BTreeMap<Epoch, Member>,
    /// Bytes of records that a replica holds at most.
    max_held_bytes: usize,
    /// How many records were lost.
    pub(crate) losses: u64,
}

/// What is looked at of a node that counts in a configuration.
pub(crate) struct Counted<'a> {
    pub(crate) node: usize,
    pub(crate) disk: &'a Disk,
    pub(crate) replica: Option<&'a Replica>,
}

impl Checks {
    pub(crate) fn new(durable: bool, nodes: usize, max_pending: usize) -> Self {
        Checks {
            durable,
            history: Vec::new(),
            applied: BTreeMap::new(),
            by_position: BTreeMap::new(),
            digests: BTreeMap::from([(Position::default(), 0)]),
            leaders: BTreeMap::new(),
            served: Epoch(0),
            epochs_served: BTreeSet::new(),
            proposed: BTreeMap::new(),
            spoke: vec![Epoch(0); nodes],
            asked: BTreeSet::new(),
            adding: BTreeMap::new(),
            // What is pending, a record that marks a place, and what is on the way of being committed.
            max_held_bytes: (2 * max_pending + 2) * MAX_VALUE_BYTES,
            losses: 0,
        }
    }

    /// In how many epochs somebody served.
    pub(crate) fn epochs_served(&self) -> u64 {
        self.epochs_served.len() as u64
    }

    /// Whether a write was applied anywhere, and is not lost.
    pub(crate) fn is_applied(&self, number: u64) -> bool {
        self.applied.contains_key(&number)
    }

    /// Whom the leader of an epoch asked to add.
    pub(crate) fn adding(&self, epoch: Epoch) -> Option<Member> {
        self.adding.get(&epoch).copied()
    }

    pub(crate) fn ask_to_add(&mut self, epoch: Epoch, learner: Member) {
        self.adding.insert(epoch, learner);
    }

    pub(crate) fn ask_to_take_over(&mut self, life: Life, epoch: Epoch) {
        self.asked.insert((life, epoch));
    }

    pub(crate) fn propose(&mut self, number: u64) {
        *self.proposed.entry(number).or_default() += 1;
    }

    /// A proposal was refused.
    pub(crate) fn refuse(&mut self, number: u64) {
        *self.proposed.get_mut(&number).expect("it was proposed") -= 1;
    }

    /// A node has another disk: as a member it is another one.
    pub(crate) fn forget(&mut self, node: usize) {
        self.spoke[node] = Epoch(0);
    }

    /// The last record that is committed.
    pub(crate) fn last(&self) -> Position {
        self.history.iter().rfind(|c| !c.lost).map(|c| c.position).unwrap_or_default()
    }

    fn at(&self, lsn: Lsn) -> Position {
        let committed = lsn.0.checked_sub(1).and_then(|at| self.history.get(at as usize));
        committed.map(|c| c.position).unwrap_or_default()
    }

    /// Whether a log has a record that is committed.
    pub(crate) fn holds(&self, log: &Log, position: Position) -> bool {
        if position.lsn > log.base.lsn {
            return log.position_at(position.lsn) == Some(position);
        }
        let base = log.base.lsn.0 as usize;
        base <= self.history.len() && self.at(log.base.lsn) == log.base && self.at(position.lsn) == position
    }

    /// Whether a log has nothing else where something is committed.
    pub(crate) fn agrees(&self, log: &Log) -> bool {
        let last = self.history.len() as u64;
        let same = |p: Position| p.lsn.0 > last || self.at(p.lsn) == p;
        log.base.lsn.0 <= last && same(log.base) && log.records.iter().all(|r| same(r.position))
    }

    /// Everything that none of these logs has is lost. A log that has a record has what is before it.
    pub(crate) fn lose_all_but<'a>(&mut self, logs: impl Iterator<Item = &'a Log> + Clone) {
        let kept = (0..self.history.len()).rev().map(|at| self.history[at].position);
        let kept = kept.into_iter().find(|position| logs.clone().any(|log| self.holds(log, *position)));
        for committed in self.history.iter_mut().skip(kept.map_or(0, |p| p.lsn.0 as usize)) {
            self.losses += u64::from(!std::mem::replace(&mut committed.lost, true));
        }
    }

    /// Everything up to this record is there, whatever was thought.
    fn turn_up(&mut self, position: Position) {
        for committed in self.history.iter_mut().take_while(|c| c.position.lsn <= position.lsn) {
            committed.lost = false;
        }
    }

    /// Equal tables where the same was applied.
    fn table(&mut self, node: usize, applied: Position, digest: u64) -> Verdict {
        let other = *self.digests.entry(applied).or_insert(digest);
        ensure(other == digest, || format!("node {node} has another table than others at {applied}"))
    }

    /// A node found this on its disk, and a table of everything up to `applied`.
    pub(crate) fn restore(&mut self, node: usize, epoch: Epoch, applied: Position, digest: u64) -> Verdict {
        ensure(self.digests.contains_key(&applied), || {
            format!("node {node} has applied up to {applied}, and nobody else has")
        })?;
        self.table(node, applied, digest)?;
        ensure(epoch >= self.spoke[node], || {
            format!("node {node} spoke in epoch {} and came back in {epoch}", self.spoke[node])
        })?;
        let same = self.losses > 0 || self.at(applied.lsn) == applied;
        ensure(same, || format!("node {node} came back with {applied} where another is committed"))
    }

    /// A node appends an entry to its log.
    pub(crate) fn append(&mut self, node: usize, entry: &LogEntry, disk: &Disk) -> Verdict {
        let (log, epoch_on_disk) = (&disk.live, disk.durable.epoch());
        match entry {
            LogEntry::Record(record) => {
                let number = number(record);
                let written = number.is_none_or(|number| *record == record_of(record.position, number));
                ensure(written, || format!("{record:?} was never written"))?;
                if record.position.epoch > epoch_on_disk {
                    return Ok(()); // Nobody hears of it before the epoch is on disk, and it gets lost with that.
                }
                let other = *self.by_position.entry(record.position).or_insert(number);
                ensure(other == number, || format!("{} is two records: {other:?} and {number:?}", record.position))
            }
            LogEntry::Cut { from } => log.from(*from).iter().try_for_each(|record| {
                let committed = self.history.get(record.position.lsn.0 as usize - 1);
                let cut = committed.is_some_and(|c| c.position == record.position && !c.lost);
                ensure(!cut, || format!("node {node} cuts {}, which is committed", record.position))
            }),
            LogEntry::Configuration(_) | LogEntry::Reset { .. } => Ok(()),
        }
    }

    /// A node applies a record, after which its table has this digest, if it is whole. Who `leads` by the configuration that is
    /// the current one decides what there is.
    pub(crate) fn apply(&mut self, node: usize, record: &Record, digest: Option<u64>, leads: bool) -> Verdict {
        let (position, number) = (record.position, number(record));
        if let Some(digest) = digest {
            self.table(node, position, digest)?;
        }
        let at = position.lsn.0 as usize - 1;
        ensure(number.is_none_or(|n| self.proposed.get(&n).is_some_and(|times| *times > 0)), || {
            format!("write {number:?} was refused and is applied")
        })?;
        ensure(at <= self.history.len(), || format!("node {node} applies {position} before what is before it"))?;
        if let Some(committed) = self.history.get(at) {
            if committed.position == position {
                if leads {
                    self.turn_up(position);
                }
                return Ok(());
            }
            ensure(committed.lost, || {
                format!("node {node} applies {position} where {} is committed", committed.position)
            })?;
            for lost in self.history.drain(at..) {
                lost.number.map(|number| self.applied.remove(&number));
            }
        }
        if let Some(number) = number {
            let before = self.applied.insert(number, position.lsn);
            ensure(before.is_none(), || format!("write {number} is applied at {before:?} and again at {position}"))?;
        }
        self.history.push(Committed { position, number, acknowledged: false, lost: false });
        Ok(())
    }

    /// A leader says that a write is committed.
    pub(crate) fn acknowledge(&mut self, written: u64, members: &[Counted<'_>]) -> Verdict {
        let lsn = self.applied.get(&written).copied();
        let Some(lsn) = lsn else { return Err(format!("write {written} is acknowledged, not applied")) };
        self.history[lsn.0 as usize - 1].acknowledged = true;
        let position = self.at(lsn);
        if !self.durable {
            return Ok(());
        }
        members.iter().try_for_each(|member| {
            let has = self.holds(&member.disk.durable, position);
            ensure(has, || format!("{position} is acknowledged, and not on the disk of {}", member.node))
        })
    }

    /// A node says something to another.
    pub(crate) fn say(&mut self, life: Life, epoch: Epoch, body: &PeerBody, disk: &Disk) -> Verdict {
        let node = life.0;
        match body {
            PeerBody::Report { basis: Basis::Nothing, .. } | PeerBody::Resign => return Ok(()),
            PeerBody::Report { .. } | PeerBody::Gap { .. } | PeerBody::Tail { .. } => {
                let asked = self.asked.contains(&(life, epoch));
                ensure(!asked, || format!("node {node} answers in epoch {epoch}, from which it asked to take over"))?;
            }
            _ => self.lead(life, epoch)?,
        }
        self.spoke[node] = self.spoke[node].max(epoch);
        ensure(disk.durable.epoch() >= epoch, || {
            format!("node {node} speaks in epoch {epoch}, which is not on its disk")
        })
    }

    fn lead(&mut self, life: Life, epoch: Epoch) -> Verdict {
        let leads = *self.leaders.entry(epoch).or_insert(life);
        ensure(leads == life, || format!("epoch {epoch} was led by {leads:?}, and now by {life:?}"))
    }

    /// What holds for a replica at any moment.
    pub(crate) fn replica(&self, node: usize, replica: &Replica, disk: &Disk) -> Verdict {
        let (flushed, last) = (replica.flushed(), disk.live.last());
        ensure(replica.prepared() == last, || format!("node {node} has another log than its disk: {last}"))?;
        let held = replica.held_bytes();
        ensure(held <= self.max_held_bytes, || format!("node {node} holds {held} bytes of records"))?;
        if !self.durable {
            return Ok(());
        }
        let here = disk.durable.position_at(flushed);
        let on_disk = here.is_some() && here == disk.live.position_at(flushed);
        // A reset that is not on disk: nothing is reported of what it stands for before a record behind it is.
        let resets = flushed == disk.live.base.lsn && disk.void;
        ensure(on_disk || resets, || format!("node {node} takes everything up to {flushed} for flushed"))
    }

    /// What holds for a leader that serves.
    pub(crate) fn leader(&mut self, life: Life, replica: &Replica, counted: &[Counted<'_>]) -> Verdict {
        let (node, epoch, committed) = (life.0, replica.configuration().epoch, replica.committed());
        self.lead(life, epoch)?;
        self.served = self.served.max(epoch);
        self.epochs_served.insert(epoch);
        let missing = self.history.iter().skip(committed.0 as usize).find(|c| c.acknowledged && !c.lost);
        if let Some(missing) = missing {
            // Whoever leads by a newer epoch may have gone on: then this one does not answer reads any more.
            let position = missing.position;
            let newest = epoch == self.served;
            ensure(!newest, || {
                format!("node {node} serves in epoch {epoch} without {position}, which was acknowledged")
            })?;
            return Ok(());
        }
        if !self.durable || committed == Lsn(0) || self.losses > 0 {
            return Ok(());
        }
        let position = self.at(committed);
        for member in counted {
            let has = self.holds(&member.disk.durable, position);
            ensure(has, || {
                format!("{position} is committed in epoch {epoch}, and not on the disk of {}", member.node)
            })?;
            let behind = member.replica.is_none_or(|f| f.configuration().epoch != epoch || f.committed() <= committed);
            ensure(behind, || format!("node {} has committed more than its leader, {committed}", member.node))?;
        }
        Ok(())
    }

    /// A leader would answer a read at once: nobody has served in a newer epoch, and it has everything that was acknowledged.
    pub(crate) fn reads(&self, node: usize, replica: &Replica) -> Verdict {
        let epoch = replica.configuration().epoch;
        ensure(epoch >= self.served, || {
            format!("node {node} answers reads in epoch {epoch}, and epoch {} is served", self.served)
        })?;
        let missing = self.history.iter().skip(replica.committed().0 as usize).find(|c| c.acknowledged && !c.lost);
        missing.map_or(Ok(()), |missing| {
            Err(format!("node {node} answers reads without {}, which was acknowledged", missing.position))
        })
    }

    /// What holds at the end for every replica.
    pub(crate) fn settled(&self, node: usize, replica: &Replica) -> Verdict {
        let last = self.last();
        let settled = replica.committed() == last.lsn && replica.prepared() == last;
        ensure(settled, || format!("node {node} has {} of {last} in the end: {replica:?}", replica.committed()))
    }
}
