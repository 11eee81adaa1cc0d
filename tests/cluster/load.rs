//! Load whose every answer is remembered: writers over HTTP and by the native client, each with keys and a [ledger](crate::ledger)
//! of its own, and an audit that reads every key by the other way than the one that it is written by. Keys that have many
//! writers are in [`crate::shared_keys`].

use crate::{
    common::{Answer, Cluster, Http, NoAnswer, until, until_ok},
    ledger::{Fate, Key},
};
use hyper::{
    Method, StatusCode,
    body::Bytes,
    header::{ETAG, HeaderMap, IF_MATCH},
};
use kv_client::{Client, ClientBuilder, Error, PutOptions};
use kv_proto::{error_code::Outcome, ids::Version, request::Condition};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

pub(crate) const WRITERS: usize = 12;
pub(crate) const KEYS_EACH: usize = 32;
/// Keys that look like the others and are never written.
const NEVER_WRITTEN: usize = 50;
/// How long [`Acknowledged::wait_for_more`] waits for what cannot come while too much is dead.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a writer waits after a failure, so that refusals do not fill the processors.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// The keys of each writer.
pub(crate) fn keys() -> Vec<Vec<Key>> {
    (0..WRITERS).map(|w| (0..KEYS_EACH).map(|k| Key::new(format!("writer{w}-{k}"))).collect()).collect()
}

/// How a writer reaches the cluster.
pub(crate) enum Way {
    Http(Http),
    Native(tokio::runtime::Runtime, Client),
}

impl Way {
    fn new(cluster: &Cluster, native: bool) -> Self {
        if !native {
            return Way::Http(Http::new(&cluster.url));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let seeds = cluster.topology().map.nodes.into_iter().map(|node| node.address);
        let client = seeds.fold(Client::builder().deadline(Duration::from_secs(1)), ClientBuilder::seed);
        Way::Native(runtime.expect("a runtime"), client.build().expect("addresses"))
    }

    pub(crate) fn put(&self, key: &str, value: Vec<u8>) -> Fate {
        match self {
            Way::Http(http) => http_fate(http.try_send(Method::PUT, &path(key), &[], value.into()), &Method::PUT),
            Way::Native(runtime, client) => match runtime.block_on(client.put(key.as_bytes(), &value)) {
                Ok(written) => Fate::Written(written.version),
                Err(error) => fate(error.outcome()),
            },
        }
    }

    /// Puts a value in place of the one with this version; `None` if that is not there.
    pub(crate) fn replace(&self, key: &str, version: Version, value: Vec<u8>) -> Option<Fate> {
        match self {
            Way::Http(http) => {
                let etag = format!("\"{version}\"");
                let sent = http.try_send(Method::PUT, &path(key), &[(IF_MATCH, &etag)], value.into());
                let is_refused = sent.as_ref().is_ok_and(|answer| answer.status == StatusCode::PRECONDITION_FAILED);
                (!is_refused).then(|| http_fate(sent, &Method::PUT))
            }
            Way::Native(runtime, client) => {
                let options = PutOptions { condition: Condition::Version(version), ..PutOptions::default() };
                match runtime.block_on(client.put_with(key.as_bytes(), &value, options)) {
                    Ok(written) => Some(Fate::Written(written.version)),
                    Err(Error::ConditionFailed { .. }) => None,
                    Err(error) => Some(fate(error.outcome())),
                }
            }
        }
    }

    pub(crate) fn delete(&self, key: &str) -> Fate {
        match self {
            Way::Http(http) => http_fate(http.try_send(Method::DELETE, &path(key), &[], Bytes::new()), &Method::DELETE),
            Way::Native(runtime, client) => match runtime.block_on(client.delete(key.as_bytes())) {
                Ok(Some(written)) => Fate::Written(written.version),
                Ok(None) => Fate::NotThere,
                Err(error) => fate(error.outcome()),
            },
        }
    }

    /// The value and its version; `Err` if there was no answer that says it.
    pub(crate) fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, String> {
        match self {
            Way::Http(http) => {
                let answer = http.try_send(Method::GET, &path(key), &[], Bytes::new()).map_err(|e| e.to_string())?;
                match answer.status {
                    StatusCode::OK => Ok(Some((answer.body.to_vec(), version(&answer.headers)))),
                    StatusCode::NOT_FOUND => Ok(None),
                    _ => Err(format!("{answer:?}")),
                }
            }
            Way::Native(runtime, client) => {
                let entry = runtime.block_on(client.get(key.as_bytes())).map_err(|e| e.to_string())?;
                Ok(entry.map(|entry| (entry.value.to_vec(), entry.version)))
            }
        }
    }

    /// Reads a key, and takes note of it; `Ok(false)` if nobody answered.
    fn check(&self, key: &mut Key) -> Result<bool, String> {
        let Ok(found) = self.get(&key.name) else { return Ok(false) };
        let found = found.map(|(value, version)| Ok::<_, String>((key.number(&value)?, version))).transpose()?;
        key.read(found).map(|()| true)
    }
}

pub(crate) fn path(key: &str) -> String {
    format!("/v1/kv/{key}")
}

fn version(headers: &HeaderMap) -> Version {
    let etag = headers[ETAG].to_str().expect("a text");
    etag.trim_matches('"').parse().expect("a version")
}

fn http_fate(sent: Result<Answer, NoAnswer>, method: &Method) -> Fate {
    match sent {
        Err(no_answer) if no_answer.sent => Fate::Unknown,
        Err(_) => Fate::NotApplied,
        Ok(answer) => match answer.status {
            StatusCode::NO_CONTENT => Fate::Written(version(&answer.headers)),
            StatusCode::NOT_FOUND if *method == Method::DELETE => Fate::NotThere,
            _ => match answer.json()["outcome"].as_str() {
                Some("not_applied") => Fate::NotApplied,
                Some("unknown") => Fate::Unknown,
                _ => panic!("a failure that does not say what became of the request: {answer:?}"),
            },
        },
    }
}

fn fate(outcome: Outcome) -> Fate {
    match outcome {
        Outcome::NotApplied => Fate::NotApplied,
        Outcome::Unknown => Fate::Unknown,
    }
}

/// Counts acknowledged writes, and wakes who waits for more.
#[derive(Default)]
pub(crate) struct Acknowledged(Mutex<u64>, Condvar);

impl Acknowledged {
    pub(crate) fn one_more(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.1.notify_all();
    }

    pub(crate) fn count(&self) -> u64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for so many more, however long that takes.
    #[track_caller]
    pub(crate) fn until_more(&self, what: &str, n: u64) {
        let target = self.count() + n;
        until(what, || (self.count() >= target).then_some(()));
    }

    /// Waits for so many more, or until [`PATIENCE`] is at its end.
    pub(crate) fn wait_for_more(&self, n: u64) {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let target = *count + n;
        let waited = self.1.wait_timeout_while(count, PATIENCE, |count| *count < target);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Stops the writers when it is dropped, by a failed assertion too.
pub(crate) struct Stop<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What one writer does until it is told to stop.
fn write(way: &Way, keys: &mut [Key], seed: u64, stop: &AtomicBool, acknowledged: &Acknowledged) -> Result<(), String> {
    let mut random = SmallRng::seed_from_u64(seed);
    while !stop.load(Relaxed) {
        let key = &mut keys[random.random_range(0..KEYS_EACH)];
        let fate = match random.random_range(0..10) {
            0 => {
                way.check(key)?;
                continue;
            }
            1..=3 => {
                let fate = way.delete(&key.name);
                key.wrote(None, fate)?;
                fate
            }
            _ => put(way, key)?,
        };
        match fate {
            Fate::Written(_) | Fate::NotThere => acknowledged.one_more(),
            Fate::NotApplied | Fate::Unknown => thread::sleep(PAUSE),
        }
    }
    Ok(())
}

fn put(way: &Way, key: &mut Key) -> Result<Fate, String> {
    let number = key.next();
    let fate = way.put(&key.name, key.value(number));
    key.wrote(Some(number), fate)?;
    Ok(fate)
}

/// Has all writers write until what happens `meanwhile` is over.
pub(crate) fn under_load(
    cluster: &Cluster,
    keys: &mut [Vec<Key>],
    acknowledged: &Acknowledged,
    seed: u64,
    meanwhile: impl FnOnce(),
) {
    let stop = AtomicBool::new(false);
    let work = |writer: usize, way: &Way, keys: &mut Vec<Key>| {
        write(way, keys, seed.wrapping_add(writer as u64), &stop, acknowledged)
    };
    let meanwhile = || {
        let _stop = Stop(&stop);
        meanwhile();
    };
    with_clients(cluster, keys, |writer| writer % 2 == 1, work, meanwhile);
}

/// Gives each client what is its own, a thread, and the cluster by one of the two ways.
pub(crate) fn with_clients<T: Send>(
    cluster: &Cluster,
    clients: &mut [T],
    native: impl Fn(usize) -> bool,
    work: impl Fn(usize, &Way, &mut T) -> Result<(), String> + Sync,
    meanwhile: impl FnOnce(),
) {
    thread::scope(|scope| {
        let threads: Vec<_> = (clients.iter_mut().enumerate())
            .map(|(client, own)| {
                let (way, work) = (Way::new(cluster, native(client)), &work);
                scope.spawn(move || work(client, &way, own))
            })
            .collect();
        meanwhile();
        for thread in threads {
            if let Err(why) = thread.join().expect("a client that does not panic") {
                panic!("{why}");
            }
        }
    });
}

/// Reads every key by the other way than the one that it is written by.
pub(crate) fn audit(cluster: &Cluster, keys: &mut [Vec<Key>]) {
    let check = |_: usize, way: &Way, keys: &mut Vec<Key>| {
        keys.iter_mut().try_for_each(|key| {
            until(&format!("somebody answers for {}", key.name), || {
                way.check(key).map(|answered| answered.then_some(())).transpose()
            })
        })
    };
    with_clients(cluster, keys, |writer| writer % 2 == 0, check, || {});
    for i in 0..NEVER_WRITTEN {
        let answer = cluster.send(Method::GET, &path(&format!("never-{i}")), &[], "");
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
    }
    until_ok("all replicas agree", || cluster.check_replicas());
}

/// Writes every key once more, until that is acknowledged.
pub(crate) fn settle(cluster: &Cluster, keys: &mut [Vec<Key>]) {
    let settle = |_: usize, way: &Way, keys: &mut Vec<Key>| {
        keys.iter_mut().try_for_each(|key| {
            until(&format!("{} is written", key.name), || match put(way, key) {
                Ok(Fate::Written(_)) => Some(Ok(())),
                Ok(_) => None,
                Err(why) => Some(Err(why)),
            })
        })
    };
    with_clients(cluster, keys, |writer| writer % 2 == 1, settle, || {});
}
