//! What servers keep, honestly or not.
//!
//! A cheat lies now and then, by counting: so it lies in every run, and differently each time only where requests come in another
//! order.

use kv_proto::{
    ids::{ClientId, HistoryId, Lsn, OperationId, PartitionId, Version},
    request::Condition,
};
use std::collections::HashMap;

/// Of so many reads or writes, a cheat lies to one.
const EVERY: u64 = 20;

/// What a store does to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cheat {
    /// Acknowledges a write and does not keep it.
    Loses,
    /// Keeps it, and has the value before it again when the next write comes.
    Reverts,
    /// Tells the value before the last write, with its version.
    TellsOld,
    /// Tells the value before the last write under the version of the last one.
    TellsOldAsNew,
    /// Tells a value with one byte that differs.
    Damages,
    /// Tells the value of another key.
    Swaps,
    /// Remembers no operation ids, so that who asks again is served again.
    Forgets,
    /// Refuses a write, as not applied, and applies it.
    RefusesAndApplies,
}

/// A value with its version.
type Held = Option<(Version, Vec<u8>)>;

#[derive(Debug, Default)]
struct Entry {
    now: Held,
    before: Held,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    Written(Version),
    Missing,
    ConditionFailed(Option<Version>),
    /// It says so, at least.
    Refused,
}

#[derive(Debug, Default)]
pub(crate) struct Store {
    cheat: Option<Cheat>,
    entries: HashMap<Vec<u8>, Entry>,
    /// By partition, the last one.
    lsns: HashMap<PartitionId, u64>,
    remembered: HashMap<(ClientId, u64), Wrote>,
    reads: u64,
    writes: u64,
    /// A key that was read before, for who mixes them up.
    other: Vec<u8>,
    /// A key whose write is taken back.
    doomed: Option<Vec<u8>>,
}

impl Store {
    pub(crate) fn new(cheat: Option<Cheat>) -> Store {
        Store { cheat, ..Store::default() }
    }

    fn lies(&self, count: u64, cheats: &[Cheat]) -> Option<Cheat> {
        self.cheat.filter(|cheat| cheats.contains(cheat) && count.is_multiple_of(EVERY))
    }

    pub(crate) fn read(&mut self, key: &[u8]) -> Held {
        self.reads += 1;
        let entry = self.entries.get(key)?;
        let now = entry.now.clone();
        let kinds = [Cheat::TellsOld, Cheat::TellsOldAsNew, Cheat::Damages, Cheat::Swaps];
        match (self.lies(self.reads, &kinds), &now, &entry.before) {
            (Some(Cheat::TellsOld), Some(_), Some(before)) => Some(before.clone()),
            (Some(Cheat::TellsOldAsNew), Some((version, _)), Some((_, before))) => Some((*version, before.clone())),
            (Some(Cheat::Damages), Some((version, value)), _) => {
                let mut damaged = value.clone();
                // Each time somewhere else.
                let at = (self.reads / EVERY) as usize * 37 % damaged.len();
                damaged[at] ^= 1;
                Some((*version, damaged))
            }
            (Some(Cheat::Swaps), Some((version, _)), _) if self.other != key => {
                let other = self.entries.get(&self.other).and_then(|entry| entry.now.clone());
                other.map(|(_, value)| (*version, value))
            }
            _ => {
                self.other.clear();
                self.other.extend_from_slice(key);
                now
            }
        }
    }

    /// Sets a key, or removes it where there is no value.
    pub(crate) fn write(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: Option<&[u8]>,
        condition: Condition,
        id: Option<OperationId>,
    ) -> Wrote {
        let id = id.map(|id| (id.client, id.sequence)).filter(|_| self.cheat != Some(Cheat::Forgets));
        if let Some(wrote) = id.and_then(|id| self.remembered.get(&id)) {
            return wrote.clone();
        }
        let wrote = self.write_anew(partition, key, value, condition);
        // What was refused may be asked again.
        if let Some(id) = id.filter(|_| wrote != Wrote::Refused) {
            self.remembered.insert(id, wrote.clone());
        }
        wrote
    }

    fn write_anew(&mut self, partition: PartitionId, key: &[u8], value: Option<&[u8]>, condition: Condition) -> Wrote {
        if let Some(entry) = self.doomed.take().and_then(|key| self.entries.get_mut(&key)) {
            entry.now = entry.before.clone();
        }
        let entry = self.entries.entry(key.to_vec()).or_default();
        let current = entry.now.as_ref().map(|(version, _)| *version);
        let holds = match condition {
            Condition::Any => true,
            Condition::Absent => current.is_none(),
            Condition::Present => current.is_some(),
            Condition::Version(version) => current == Some(version),
        };
        if !holds {
            return Wrote::ConditionFailed(current);
        }
        if value.is_none() && current.is_none() {
            return Wrote::Missing;
        }
        self.writes += 1;
        let lsn = self.lsns.entry(partition).or_default();
        *lsn += 1;
        let version = Version { history: HistoryId(0), lsn: Lsn(*lsn) };
        let lies = self.cheat.filter(|_| self.writes.is_multiple_of(EVERY));
        if lies == Some(Cheat::Loses) {
            return Wrote::Written(version);
        }
        entry.before = std::mem::replace(&mut entry.now, value.map(|value| (version, value.to_vec())));
        match lies {
            Some(Cheat::Reverts) => self.doomed = Some(key.to_vec()),
            Some(Cheat::RefusesAndApplies) => return Wrote::Refused,
            _ => {}
        }
        Wrote::Written(version)
    }
}
