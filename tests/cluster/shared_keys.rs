//! Keys that many clients share. What each of them asked and was answered goes into the key's history, which must be
//! linearizable, and into its ledger, which knows what must be there: both of `kv-checker`, whose introduction says what each
//! finds and why neither accuses anybody wrongly.
//!
//! Half of the clients speak HTTP, half the native protocol. Each reads, writes and deletes, and replaces values on the condition
//! that the key has what this client read last of it: that may be long ago, and then has to be refused.

use crate::{
    common::{Cluster, number_in, until},
    ledger::{self, Fate},
    load::{Acknowledged, PAUSE, Stop, Way, with_clients},
};
use kv_checker::{
    ledger::{Called, Ledger},
    register::{Action, Checked, Held, History, Initial, Ticket},
};
use kv_proto::{ids::Version, routing::partition_of};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

const CLIENTS: usize = 8;
const KEYS: usize = 24;
/// Most operations of a history: far more than a test has time for.
const MAX_OPERATIONS: usize = 20_000;
/// How many writes of a shard are acknowledged before the next thing is done to it.
const ENOUGH: u64 = 100;

/// The time of a test in microseconds, as the judges want it.
struct Clock(Instant);

impl Clock {
    /// Before a request is sent.
    fn call(&self) -> u64 {
        micros(self.0.elapsed().as_nanos() / 1000)
    }

    /// Once its answer is there.
    fn returned(&self) -> u64 {
        micros(self.0.elapsed().as_nanos().div_ceil(1000))
    }
}

fn micros(n: u128) -> u64 {
    u64::try_from(n).expect("a test ends some day")
}

/// What an operation came to.
#[derive(Clone, Copy, Debug)]
enum Seen {
    Value(u64, Version),
    Nothing,
    Written(Version),
    /// A condition did not hold.
    Mismatch,
    /// It certainly did nothing; a read had no answer.
    NotApplied,
    Unknown,
}

/// An operation that is under way.
struct Call {
    asked: Action,
    called: Called,
    ticket: Option<Ticket>,
}

struct Known {
    history: History,
    ledger: Ledger,
    /// The number of the last value.
    last: u64,
    findings: Vec<String>,
    /// How many operations ended how.
    endings: BTreeMap<&'static str, u64>,
}

/// A key, and what its clients were told.
struct SharedKey {
    name: String,
    shard: u16,
    known: Mutex<Known>,
}

impl SharedKey {
    fn new(name: String, shard: u16) -> Self {
        let known = Known {
            history: History::new(Initial::Absent, MAX_OPERATIONS),
            ledger: Ledger::new(Initial::Absent),
            last: 0,
            findings: Vec::new(),
            endings: BTreeMap::new(),
        };
        SharedKey { name, shard, known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a value that nobody else writes.
    fn next(&self) -> u64 {
        let mut known = self.lock();
        known.last += 1;
        known.last
    }

    /// An operation is about to be sent.
    fn begin(&self, clock: &Clock, asked: Action) -> Call {
        let mut known = self.lock();
        let at = clock.call();
        Call { asked, called: known.ledger.call(at), ticket: known.history.call(at, asked) }
    }

    /// It came to this, at this time.
    fn end(&self, call: Call, at: u64, seen: Seen) {
        let Call { asked, called, ticket } = call;
        let writes: Held = match asked {
            Action::Write(new) | Action::Swap { new, .. } => Some(new),
            _ => None,
        };
        let mut known = self.lock();
        let Known { history, ledger, findings, endings, .. } = &mut *known;
        let (verdict, action) = match seen {
            Seen::Value(number, version) => {
                (ledger.read(called, at, Some(number), Some(version)), Some(Action::Read(Some(number))))
            }
            Seen::Nothing => (ledger.read(called, at, None, None), Some(Action::Read(None))),
            Seen::Written(version) => {
                let action = if writes.is_none() { Action::Delete { found: Some(true) } } else { asked };
                (ledger.wrote(called, at, writes, Some(version)), Some(action))
            }
            Seen::Mismatch => {
                ledger.refused(writes);
                let Action::Swap { expected, .. } = asked else { unreachable!("{asked:?} has no condition") };
                (Ok(()), Some(Action::Mismatch { expected }))
            }
            Seen::NotApplied => {
                ledger.refused(writes);
                (Ok(()), None)
            }
            Seen::Unknown => {
                ledger.in_doubt(writes);
                (Ok(()), None)
            }
        };
        *endings.entry(ending(asked, seen)).or_default() += 1;
        findings.extend(verdict.err().map(|violation| violation.to_string()));
        let Some(ticket) = ticket else { return };
        match action {
            Some(action) => history.returned(ticket, at, action),
            None if matches!(seen, Seen::Unknown) => history.in_doubt(ticket),
            None => history.refused(ticket),
        }
    }

    /// Reads: `Err` if nobody answered.
    fn read(&self, clock: &Clock, way: &Way) -> Result<Option<(u64, Version)>, String> {
        let call = self.begin(clock, Action::Read(None));
        let answer = way.get(&self.name);
        let at = clock.returned();
        let found = answer.and_then(|found| {
            let number = |(bytes, version): (Vec<u8>, Version)| match ledger::number(&self.name, &bytes) {
                Ok(number) => Ok((number, version)),
                Err(why) => {
                    self.lock().findings.push(why.clone());
                    Err(why)
                }
            };
            found.map(number).transpose()
        });
        let seen = match found {
            Ok(Some((number, version))) => Seen::Value(number, version),
            Ok(None) => Seen::Nothing,
            Err(_) => Seen::NotApplied,
        };
        self.end(call, at, seen);
        found
    }

    fn put(&self, clock: &Clock, way: &Way) -> Seen {
        let number = self.next();
        self.write(clock, Action::Write(number), || Some(way.put(&self.name, ledger::value(&self.name, number))))
    }

    fn delete(&self, clock: &Clock, way: &Way) -> Seen {
        self.write(clock, Action::Delete { found: None }, || Some(way.delete(&self.name)))
    }

    fn replace(&self, clock: &Clock, way: &Way, (expected, version): (u64, Version)) -> Seen {
        let new = self.next();
        self.write(clock, Action::Swap { expected, new }, || {
            way.replace(&self.name, version, ledger::value(&self.name, new))
        })
    }

    fn write(&self, clock: &Clock, asked: Action, send: impl FnOnce() -> Option<Fate>) -> Seen {
        let call = self.begin(clock, asked);
        let fate = send();
        let at = clock.returned();
        let seen = match fate {
            Some(Fate::Written(version)) => Seen::Written(version),
            Some(Fate::NotThere) => Seen::Nothing,
            Some(Fate::NotApplied) => Seen::NotApplied,
            Some(Fate::Unknown) => Seen::Unknown,
            None => Seen::Mismatch,
        };
        self.end(call, at, seen);
        seen
    }

    /// What cannot have happened, or could not be judged.
    fn findings(&self) -> Vec<String> {
        let known = self.lock();
        let mut findings = known.findings.clone();
        match known.history.check() {
            Ok(Checked::Linearizable { .. }) => {}
            Ok(Checked::Undecided) => findings.push("its history is too tangled to be judged".to_owned()),
            Err(offence) => findings.push(offence.to_string()),
        }
        if known.history.left_out() > 0 {
            findings.push(format!("its history lacks {} operations", known.history.left_out()));
        }
        if known.ledger.is_lenient() {
            findings.push("its ledger has forgotten what was in doubt".to_owned());
        }
        findings.into_iter().map(|finding| format!("{}: {finding}", self.name)).collect()
    }
}

/// What to count an operation by.
fn ending(asked: Action, seen: Seen) -> &'static str {
    match (asked, seen) {
        (_, Seen::Value(..)) => "found",
        (_, Seen::Nothing) => "missing",
        (Action::Swap { .. }, Seen::Written(_)) => "replaced",
        (Action::Delete { .. }, Seen::Written(_)) => "deleted",
        (_, Seen::Written(_)) => "put",
        (_, Seen::Mismatch) => "mismatched",
        (_, Seen::NotApplied) => "not applied",
        (_, Seen::Unknown) => "in doubt",
    }
}

/// The keys of a test.
pub(crate) struct SharedKeys {
    seed: u64,
    clock: Clock,
    keys: Vec<SharedKey>,
    /// By shard.
    acknowledged: Vec<Acknowledged>,
}

impl SharedKeys {
    /// Of a cluster that nobody has written to. `KV_HISTORY_SEED` has the clients ask in the order of an earlier run.
    pub(crate) fn new(cluster: &Cluster) -> Self {
        let seed = number_in("KV_HISTORY_SEED").unwrap_or_else(rand::random);
        println!("KV_HISTORY_SEED={seed} has the clients ask the same again");
        let map = cluster.topology().map;
        let key = |k| {
            let name = format!("shared-{k}");
            let partition = partition_of(name.as_bytes(), map.partition_count());
            SharedKey::new(name, map.partitions[usize::from(partition.0)].shard.0)
        };
        let keys: Vec<_> = (0..KEYS).map(key).collect();
        let shards = keys.iter().map(|key| key.shard).max().map_or(0, |last| last + 1);
        let acknowledged = (0..shards).map(|_| Acknowledged::default()).collect();
        SharedKeys { seed, clock: Clock(Instant::now()), keys, acknowledged }
    }

    /// Has all clients ask until what happens `meanwhile` is over.
    pub(crate) fn under_load(&self, cluster: &Cluster, meanwhile: impl FnOnce()) {
        let stop = AtomicBool::new(false);
        let client = |client| SmallRng::seed_from_u64(self.seed.wrapping_add(client));
        let mut clients: Vec<_> = (0..CLIENTS as u64).map(client).collect();
        let work = |_: usize, way: &Way, random: &mut SmallRng| {
            self.use_all(way, random, &stop);
            Ok(())
        };
        with_clients(
            cluster,
            &mut clients,
            |client| client % 2 == 1,
            work,
            || {
                let _stop = Stop(&stop);
                self.until_more_everywhere();
                meanwhile();
                self.until_more_everywhere();
            },
        );
    }

    /// What one client does until it is told to stop.
    fn use_all(&self, way: &Way, random: &mut SmallRng, stop: &AtomicBool) {
        // What it read last.
        let mut last = [None; KEYS];
        while !stop.load(Relaxed) {
            let at = random.random_range(0..KEYS);
            let (key, clock) = (&self.keys[at], &self.clock);
            let choice = random.random_range(0..10);
            let seen = match choice {
                0..3 => None,
                3..5 => Some(key.put(clock, way)),
                5 => Some(key.delete(clock, way)),
                // As it is from long ago, or read again just before.
                6..8 => last[at].map(|found| key.replace(clock, way, found)),
                _ => match key.read(clock, way) {
                    Ok(found) => {
                        last[at] = found;
                        found.map(|found| key.replace(clock, way, found))
                    }
                    Err(_) => Some(Seen::NotApplied),
                },
            };
            let seen = seen.unwrap_or_else(|| match key.read(clock, way) {
                Ok(found) => {
                    last[at] = found;
                    Seen::Nothing
                }
                Err(_) => Seen::NotApplied,
            });
            match seen {
                Seen::Written(_) => self.acknowledged[usize::from(key.shard)].one_more(),
                Seen::NotApplied | Seen::Unknown => thread::sleep(PAUSE),
                Seen::Value(..) | Seen::Nothing | Seen::Mismatch => {}
            }
        }
    }

    /// Waits until a shard has acknowledged some more writes.
    #[track_caller]
    pub(crate) fn until_more(&self, shard: u16) {
        self.acknowledged[usize::from(shard)].until_more(&format!("writes of shard {shard} are acknowledged"), ENOUGH);
    }

    #[track_caller]
    pub(crate) fn until_more_everywhere(&self) {
        (0..).take(self.acknowledged.len()).for_each(|shard| self.until_more(shard));
    }

    /// Reads every key by both ways: what was acknowledged last is there.
    #[track_caller]
    pub(crate) fn audit(&self, cluster: &Cluster) {
        let read_all = |_: usize, way: &Way, (): &mut ()| {
            for key in &self.keys {
                let found = until(&format!("somebody answers for {}", key.name), || key.read(&self.clock, way).ok());
                let (held, version) = found.unzip();
                let mut known = key.lock();
                let verdict = known.ledger.audit(held, version);
                known.findings.extend(verdict.err().map(|violation| format!("at the end, {violation}")));
            }
            Ok(())
        };
        with_clients(cluster, &mut [(), ()], |client| client == 1, read_all, || {});
    }

    /// Panics with all that cannot have happened.
    #[track_caller]
    pub(crate) fn judge(&self) {
        let mut endings: BTreeMap<&str, u64> = BTreeMap::new();
        for key in &self.keys {
            key.lock().endings.iter().for_each(|(how, n)| *endings.entry(how).or_default() += n);
        }
        println!("{endings:?}");
        let findings: Vec<String> = self.keys.iter().flat_map(SharedKey::findings).collect();
        assert!(findings.is_empty(), "KV_HISTORY_SEED={} has found:\n{}", self.seed, findings.join("\n"));
        for how in ["found", "missing", "put", "deleted", "replaced", "mismatched"] {
            assert!(endings.contains_key(how), "no operation was answered by {how}: {endings:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::ids::{HistoryId, Lsn};

    /// What was asked and seen; some words of what is found, if that cannot be.
    type Case<'a> = (&'a [(Action, Seen)], Option<&'a str>);

    fn version(lsn: u64) -> Version {
        Version { history: HistoryId(1), lsn: Lsn(lsn) }
    }

    /// The judges are told everything that they need.
    #[test]
    fn what_cannot_have_happened_is_found() {
        use Action::{Delete, Read, Swap, Write};
        use Seen::{Mismatch, NotApplied, Nothing, Unknown, Value, Written};
        let delete = Delete { found: None };
        let cases: &[Case<'_>] = &[
            (&[(Write(1), Written(version(1))), (Read(None), Value(1, version(1)))], None),
            (&[(Write(1), Unknown), (Read(None), Nothing), (Read(None), Value(1, version(1)))], None),
            (&[(Write(1), Written(version(1))), (delete, Written(version(2))), (delete, Nothing)], None),
            (&[(Write(1), Written(version(1))), (Read(None), Nothing)], Some("read, found nothing")),
            (&[(Write(1), NotApplied), (Read(None), Value(1, version(1)))], Some("which was never written")),
            (&[(Write(1), Written(version(1))), (delete, Nothing)], Some("read, found nothing")),
            (
                &[(Write(1), Written(version(1))), (Swap { expected: 1, new: 2 }, Mismatch)],
                Some("refused because value 1 was not there"),
            ),
            (
                &[
                    (Write(1), Written(version(1))),
                    (Write(2), Written(version(2))),
                    (Swap { expected: 1, new: 3 }, Written(version(3))),
                ],
                Some("write of value 3 in place of value 1"),
            ),
            (
                &[(Write(1), Written(version(2))), (Write(2), Written(version(1)))],
                Some("though version 1-2 was known before"),
            ),
        ];
        for (operations, words) in cases {
            let (key, clock) = (SharedKey::new("k".to_owned(), 0), Clock(Instant::now()));
            for (asked, seen) in *operations {
                let call = key.begin(&clock, *asked);
                key.end(call, clock.returned(), *seen);
                // Equal times would overlap.
                let now = clock.returned();
                until("time passes", || (clock.call() > now).then_some(()));
            }
            let findings = key.findings().join("\n");
            assert_eq!(words.is_none(), findings.is_empty(), "{operations:?}: {findings}");
            assert!(findings.contains(words.unwrap_or_default()), "{operations:?}: {findings}");
        }
    }
}
