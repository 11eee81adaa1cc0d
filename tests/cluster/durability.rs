//! Acknowledged writes outlive `kill -9`: of any process, at any moment, and of all processes of a cluster at once.
//!
//! Writers over HTTP and by the native client keep a [ledger](crate::ledger) of what they were answered, while a seeded
//! schedule kills processes. After each round, once the cluster takes writes again, every key is read by the other way
//! than the one it was written by.
//!
//! `KV_KILL_SEED` plays a schedule again (the moments of the kills are counted in acknowledged writes, not in
//! microseconds, so that only nearly the same happens); `KV_KILL_ROUNDS` says how many rounds there are.

use crate::{
    common::{Cluster, Http, Process, runs, until, until_ok},
    ledger::{Fate, Key},
};
use hyper::{
    Method, StatusCode,
    body::Bytes,
    header::{ETAG, HeaderMap},
};
use kv_client::{Client, ClientBuilder};
use kv_proto::{error_code::Outcome, ids::Version};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env,
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};
use tempfile::TempDir;

const WRITERS: usize = 12;
const KEYS_EACH: usize = 32;
/// Keys that look like the others and are never written.
const NEVER_WRITTEN: usize = 50;
const ROUNDS: usize = 10;
/// In each round of this many, the last thing that happens is that all processes are killed.
const ALL_EVERY: usize = 3;
/// How long a round waits for acknowledgements that cannot come while too much is dead.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a writer waits after a failure, so that refusals do not fill the processors.
const PAUSE: Duration = Duration::from_millis(5);

/// Logs so small that they are reused within a round or two.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("KV_MAX_VALUE_BYTES", "65536"),
    ("KV_SEGMENT_BYTES", "1152KiB"),
    ("KV_MAX_LOG_BYTES", "3456KiB"),
    ("KV_DEADLINE_MS", "1000"),
];

/// How a writer reaches the cluster.
enum Way {
    Http(Http),
    Native(tokio::runtime::Runtime, Client),
}

impl Way {
    fn new(cluster: &Cluster, native: bool) -> Self {
        if !native {
            return Way::Http(Http::new(&cluster.url));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let nodes = cluster.manifest().processes.into_iter().filter(|p| ["leader", "follower"].contains(&&*p.role));
        let seeds = nodes.filter_map(|p| p.address);
        let client = seeds.fold(Client::builder().deadline(Duration::from_secs(1)), ClientBuilder::seed);
        Way::Native(runtime.expect("a runtime"), client.build().expect("addresses"))
    }

    fn put(&self, key: &str, value: Vec<u8>) -> Fate {
        match self {
            Way::Http(http) => http_fate(http, Method::PUT, key, value.into()),
            Way::Native(runtime, client) => match runtime.block_on(client.put(key.as_bytes(), &value)) {
                Ok(written) => Fate::Written(written.version),
                Err(error) => fate(error.outcome()),
            },
        }
    }

    fn delete(&self, key: &str) -> Fate {
        match self {
            Way::Http(http) => http_fate(http, Method::DELETE, key, Bytes::new()),
            Way::Native(runtime, client) => match runtime.block_on(client.delete(key.as_bytes())) {
                Ok(Some(written)) => Fate::Written(written.version),
                Ok(None) => Fate::NotThere,
                Err(error) => fate(error.outcome()),
            },
        }
    }

    /// The value and its version; `Err` if there was no answer that says it.
    fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>, String> {
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

fn path(key: &str) -> String {
    format!("/v1/kv/{key}")
}

fn version(headers: &HeaderMap) -> Version {
    let etag = headers[ETAG].to_str().expect("a text");
    etag.trim_matches('"').parse().expect("a version")
}

fn http_fate(http: &Http, method: Method, key: &str, body: Bytes) -> Fate {
    match http.try_send(method.clone(), &path(key), &[], body) {
        Err(no_answer) if no_answer.sent => Fate::Unknown,
        Err(_) => Fate::NotApplied,
        Ok(answer) => match answer.status {
            StatusCode::NO_CONTENT => Fate::Written(version(&answer.headers)),
            StatusCode::NOT_FOUND if method == Method::DELETE => Fate::NotThere,
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
struct Acknowledged(Mutex<u64>, Condvar);

impl Acknowledged {
    fn one_more(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.1.notify_all();
    }

    /// Waits for so many more, or until [`PATIENCE`] is at its end.
    fn wait_for_more(&self, n: u64) {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let target = *count + n;
        let waited = self.1.wait_timeout_while(count, PATIENCE, |count| *count < target);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Stops the writers when it is dropped, by a failed assertion too.
struct Stop<'a>(&'a AtomicBool);

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

/// Gives each writer a thread, and the cluster by one of the two ways.
fn with_writers(
    cluster: &Cluster,
    keys: &mut [Vec<Key>],
    native: impl Fn(usize) -> bool,
    work: impl Fn(usize, &Way, &mut Vec<Key>) -> Result<(), String> + Sync,
    meanwhile: impl FnOnce(),
) {
    thread::scope(|scope| {
        let threads: Vec<_> = (keys.iter_mut().enumerate())
            .map(|(writer, keys)| {
                let (way, work) = (Way::new(cluster, native(writer)), &work);
                scope.spawn(move || work(writer, &way, keys))
            })
            .collect();
        meanwhile();
        for thread in threads {
            if let Err(why) = thread.join().expect("a writer that does not panic") {
                panic!("{why}");
            }
        }
    });
}

fn kill(process: &Process) {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).expect("a process id");
    // It may have ended, by a kill that is not in cluster.json yet.
    let _ = kill_process(pid, Signal::KILL);
}

/// Kills some process other than the supervisor.
fn kill_one(cluster: &Cluster, random: &mut SmallRng) -> Process {
    let mut processes = cluster.manifest().processes;
    processes.retain(|p| p.role != "supervisor");
    let victim = processes.swap_remove(random.random_range(0..processes.len()));
    kill(&victim);
    victim
}

/// Kills all processes: the supervisor first, so that it starts none again.
fn kill_all(cluster: &Cluster) {
    let processes = cluster.manifest().processes;
    processes.iter().rev().for_each(kill);
    until("all processes are gone", || processes.iter().all(|p| !runs(p.pid)).then_some(()));
}

/// Reads every key by the other way than the one that it is written by.
fn audit(cluster: &Cluster, keys: &mut [Vec<Key>]) {
    let check = |_: usize, way: &Way, keys: &mut Vec<Key>| {
        keys.iter_mut().try_for_each(|key| {
            until(&format!("somebody answers for {}", key.name), || {
                way.check(key).map(|answered| answered.then_some(())).transpose()
            })
        })
    };
    with_writers(cluster, keys, |writer| writer % 2 == 0, check, || {});
    for i in 0..NEVER_WRITTEN {
        let answer = cluster.send(Method::GET, &path(&format!("never-{i}")), &[], "");
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
    }
    until_ok("all replicas agree", || cluster.check_replicas());
}

/// Writes every key once more, until that is acknowledged.
fn settle(cluster: &Cluster, keys: &mut [Vec<Key>]) {
    let settle = |_: usize, way: &Way, keys: &mut Vec<Key>| {
        keys.iter_mut().try_for_each(|key| {
            until(&format!("{} is written", key.name), || match put(way, key) {
                Ok(Fate::Written(_)) => Some(Ok(())),
                Ok(_) => None,
                Err(why) => Some(Err(why)),
            })
        })
    };
    with_writers(cluster, keys, |writer| writer % 2 == 1, settle, || {});
}

fn start(dir: TempDir) -> Cluster {
    Cluster::start_as(dir, &["--restart"], &ENVIRONMENT)
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|n| n.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

#[test]
fn acknowledged_writes_outlive_kills() {
    let seed = number("KV_KILL_SEED").unwrap_or_else(rand::random);
    let rounds = number("KV_KILL_ROUNDS").map_or(ROUNDS, |n| n as usize);
    println!("KV_KILL_SEED={seed} plays this schedule again");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut keys: Vec<Vec<Key>> =
        (0..WRITERS).map(|w| (0..KEYS_EACH).map(|k| Key::new(format!("writer{w}-{k}"))).collect()).collect();
    let acknowledged = Acknowledged::default();
    let mut cluster = start(tempfile::tempdir().expect("a directory"));

    for round in 0..rounds {
        let all = round % ALL_EVERY == ALL_EVERY - 1;
        let kills = random.random_range(if all { 0..=1 } else { 1..=3 });
        let writers_seed: u64 = random.random();
        let stop = AtomicBool::new(false);
        let work = |writer: usize, way: &Way, keys: &mut Vec<Key>| {
            write(way, keys, writers_seed.wrapping_add(writer as u64), &stop, &acknowledged)
        };
        let moment = |random: &mut SmallRng| {
            acknowledged.wait_for_more(random.random_range(1..400));
            thread::sleep(Duration::from_micros(random.random_range(0..5000)));
        };
        let blows = || {
            let _stop = Stop(&stop);
            let mut killed = Vec::new();
            for _ in 0..kills {
                moment(&mut random);
                let victim = kill_one(&cluster, &mut random);
                println!("round {round}: killed {} (process {})", victim.name, victim.pid);
                killed.push(victim.pid);
            }
            if all {
                moment(&mut random);
                kill_all(&cluster);
                println!("round {round}: killed all");
            } else {
                let restarted = || {
                    let processes = cluster.manifest().processes;
                    (processes.len() == 8 && processes.iter().all(|p| !killed.contains(&p.pid))).then_some(())
                };
                until("what was killed is started again", restarted);
                cluster.until_ready();
                acknowledged.wait_for_more(200);
            }
        };
        with_writers(&cluster, &mut keys, |writer| writer % 2 == 1, work, blows);
        if all {
            cluster = start(cluster.into_dir());
        }
        cluster.until_ready();
        audit(&cluster, &mut keys);
    }

    settle(&cluster, &mut keys);
    audit(&cluster, &mut keys);
    let there = keys.iter().flatten().filter(|key| matches!(key.certain(), Some(Some(_)))).count() as u64;
    assert_eq!(there as usize, WRITERS * KEYS_EACH);
    let topology = cluster.topology();
    let held = topology.nodes.iter().filter_map(|n| n.stats.as_ref()).flat_map(|s| &s.replicas).map(|r| r.keys);
    assert_eq!(
        held.sum::<u64>(),
        2 * there,
        "the keys of leaders and followers are those that were written, no others"
    );
    let acknowledged = acknowledged.0.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{acknowledged} writes were acknowledged in {rounds} rounds");
}

/// Where writes wait only for memories, the kill of one process at a time loses nothing: its peer has it. Nor does it when all
/// are stopped in order.
#[test]
fn without_the_disk_acknowledged_writes_outlive_single_kills() {
    let seed = number("KV_KILL_SEED").unwrap_or_else(rand::random);
    println!("KV_KILL_SEED={seed} plays this schedule again");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut keys: Vec<Vec<Key>> =
        (0..WRITERS).map(|w| (0..KEYS_EACH).map(|k| Key::new(format!("writer{w}-{k}"))).collect()).collect();
    let acknowledged = Acknowledged::default();
    let flags = ["--restart", "--shards", "1", "--ack", "replicated"];
    // What a follower had only in memory it is sent again from the leader's log, which must be there yet.
    let environment = ENVIRONMENT.map(|(name, value)| (name, if name == "KV_MAX_LOG_BYTES" { "64MiB" } else { value }));
    let mut cluster = Cluster::start_as(tempfile::tempdir().expect("a directory"), &flags, &environment);
    for round in 0..number("KV_KILL_ROUNDS").unwrap_or(6) {
        let writers_seed: u64 = random.random();
        let stop = AtomicBool::new(false);
        let work = |writer: usize, way: &Way, keys: &mut Vec<Key>| {
            write(way, keys, writers_seed.wrapping_add(writer as u64), &stop, &acknowledged)
        };
        let blow = || {
            let _stop = Stop(&stop);
            acknowledged.wait_for_more(random.random_range(200..600));
            let victim = kill_one(&cluster, &mut random);
            println!("round {round}: killed {} (process {})", victim.name, victim.pid);
            until("what was killed is started again", || {
                let processes = cluster.manifest().processes;
                (processes.len() == 4 && processes.iter().all(|p| p.pid != victim.pid)).then_some(())
            });
            cluster.until_ready();
            acknowledged.wait_for_more(200);
        };
        with_writers(&cluster, &mut keys, |writer| writer % 2 == 1, work, blow);
        audit(&cluster, &mut keys);
    }
    cluster = Cluster::start_as(cluster.stop(), &flags, &environment);
    audit(&cluster, &mut keys);
}
