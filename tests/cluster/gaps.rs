//! Writers by the native client that go on whatever happens, keep a [ledger](crate::ledger), and know how long they had no
//! answer. Each has keys of one partition, so that a gap in its answers is one of that partition.

use crate::{
    common::{BOUND, Cluster, until},
    ledger::{Fate, Key},
};
use kv_client::{Client, ClientBuilder};
use kv_proto::{error_code::Outcome, ids::PartitionId, routing::partition_of};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, task::JoinHandle};

const KEYS_EACH: usize = 4;
/// How many writes of each writer, on average, are acknowledged before anything is done to their cluster.
const ENOUGH: usize = 50;
/// One of so many requests is a read.
const READS: u64 = 5;
/// What a writer waits after a failure, so that refusals do not fill the processors.
const PAUSE: Duration = Duration::from_millis(5);

/// What a writer was answered, and when.
#[derive(Default)]
struct Diary {
    /// When each acknowledged write began, and when it was acknowledged.
    acknowledged: Vec<(Instant, Instant)>,
    /// Writes that the client gave up, whether they were applied or not, as the client tells it.
    failures: Vec<(Instant, String)>,
}

struct Writer {
    partition: PartitionId,
    diary: Arc<Mutex<Diary>>,
    task: JoinHandle<Result<Vec<Key>, String>>,
}

/// Writers that go on until they are told to stop.
pub(crate) struct Load {
    runtime: Runtime,
    stop: Arc<AtomicBool>,
    writers: Vec<Writer>,
}

/// What there should be once writers have stopped.
pub(crate) struct Written {
    runtime: Runtime,
    keys: Vec<Key>,
    /// How many writes were acknowledged.
    pub(crate) acknowledged: usize,
}

/// A client that has seen nothing of the cluster but the addresses of its nodes.
pub(crate) fn client(cluster: &Cluster, deadline: Duration) -> Client {
    let seeds = cluster.topology().map.nodes.into_iter().map(|node| node.address);
    let builder = seeds.fold(Client::builder().deadline(deadline), ClientBuilder::seed);
    builder.build().expect("addresses")
}

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn read(client: &Client, key: &mut Key) -> Result<bool, String> {
    let Ok(entry) = client.get(key.name.as_bytes()).await else { return Ok(false) };
    let found = entry.map(|e| Ok::<_, String>((key.number(&e.value)?, e.version))).transpose()?;
    key.read(found).map(|()| true)
}

async fn write(
    client: Client,
    mut keys: Vec<Key>,
    stop: Arc<AtomicBool>,
    diary: Arc<Mutex<Diary>>,
) -> Result<Vec<Key>, String> {
    for turn in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        let key = &mut keys[turn as usize % KEYS_EACH];
        let done = if turn % READS == READS - 1 {
            read(&client, key).await?
        } else {
            let (number, began) = (key.next(), Instant::now());
            let result = client.put(key.name.as_bytes(), &key.value(number)).await;
            let (now, mut diary) = (Instant::now(), diary.lock().unwrap_or_else(PoisonError::into_inner));
            let fate = match &result {
                Ok(written) => {
                    diary.acknowledged.push((began, now));
                    Fate::Written(written.version)
                }
                Err(error) => {
                    diary.failures.push((now, format!("{:?}: {error}", error.outcome())));
                    if error.outcome() == Outcome::NotApplied { Fate::NotApplied } else { Fate::Unknown }
                }
            };
            key.wrote(Some(number), fate)?;
            result.is_ok()
        };
        if !done {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(keys)
}

impl Load {
    /// One writer for each partition; a request may take so long, its retries included.
    pub(crate) fn start(cluster: &Cluster, deadline: Duration) -> Self {
        let (runtime, stop) = (runtime(), Arc::new(AtomicBool::new(false)));
        let partitions = cluster.topology().map.partition_count();
        // Keys that nobody has written yet.
        let run: u32 = rand::random();
        let names = |partition| {
            let names = (0..).map(|i| format!("load-{run}-{i}"));
            names.filter(move |name| partition_of(name.as_bytes(), partitions) == partition).take(KEYS_EACH)
        };
        let writer = |partition| {
            let (diary, keys) = (Arc::<Mutex<Diary>>::default(), names(partition).map(Key::new).collect());
            let client = client(cluster, deadline);
            let task = runtime.spawn(write(client, keys, Arc::clone(&stop), Arc::clone(&diary)));
            Writer { partition, diary, task }
        };
        let load = Load { writers: (0..partitions).map(PartitionId).map(writer).collect(), runtime, stop };
        let enough = load.writers.len() * ENOUGH;
        let since = Instant::now();
        until("writes are acknowledged", || (load.acknowledged_since(since, |_| true) >= enough).then_some(()));
        load.until_flows(|_| true);
        load
    }

    /// Waits until every writer of these partitions has had a write acknowledged that it began after this.
    #[track_caller]
    pub(crate) fn until_flows(&self, partitions: impl Fn(PartitionId) -> bool) {
        let since = Instant::now();
        for writer in self.writers.iter().filter(|w| partitions(w.partition)) {
            until(&format!("writes to partition {} flow", writer.partition), || {
                if writer.task.is_finished() {
                    return Some(()); // It found what cannot be, and says so when it is stopped.
                }
                let diary = writer.diary.lock().unwrap_or_else(PoisonError::into_inner);
                diary.acknowledged.last().is_some_and(|(began, _)| *began > since).then_some(())
            });
        }
    }

    /// How many writes that began after this were acknowledged in these partitions.
    pub(crate) fn acknowledged_since(&self, since: Instant, partitions: impl Fn(PartitionId) -> bool) -> usize {
        let of = |w: &Writer| {
            let diary = w.diary.lock().unwrap_or_else(PoisonError::into_inner);
            diary.acknowledged.iter().rev().take_while(|(began, _)| *began > since).count()
        };
        self.writers.iter().filter(|w| partitions(w.partition)).map(of).sum()
    }

    /// The longest time in which some partition acknowledged nothing, of what ended after `since`.
    pub(crate) fn longest_gap(&self, since: Instant) -> Duration {
        let of = |w: &Writer| {
            let diary = w.diary.lock().unwrap_or_else(PoisonError::into_inner);
            let times = diary.acknowledged.iter().map(|(_, at)| *at).chain([Instant::now()]);
            let pairs = times.clone().zip(times.skip(1)).filter(|(_, later)| *later >= since);
            pairs.map(|(before, later)| later - before).max().unwrap_or_default()
        };
        self.writers.iter().map(of).max().unwrap_or_default()
    }

    /// Writes that the client gave up since then.
    pub(crate) fn failures(&self, since: Instant) -> Vec<String> {
        let of = |w: &Writer| {
            let diary = w.diary.lock().unwrap_or_else(PoisonError::into_inner);
            diary.failures.iter().filter(|(at, _)| *at >= since).map(|(_, why)| why.clone()).collect::<Vec<_>>()
        };
        self.writers.iter().flat_map(of).collect()
    }

    /// Stops; panics if a writer was ever answered what cannot be.
    #[track_caller]
    pub(crate) fn stop(self) -> Written {
        self.stop.store(true, Relaxed);
        let (mut keys, mut acknowledged) = (Vec::new(), 0);
        for writer in self.writers {
            let result = self.runtime.block_on(writer.task).expect("a writer that does not panic");
            keys.extend(result.unwrap_or_else(|why| panic!("partition {}: {why}", writer.partition)));
            acknowledged += writer.diary.lock().unwrap_or_else(PoisonError::into_inner).acknowledged.len();
        }
        Written { runtime: self.runtime, keys, acknowledged }
    }
}

impl Written {
    /// Reads every key, by a client that has seen nothing yet: it is what was acknowledged last, or newer.
    #[track_caller]
    pub(crate) fn check(&mut self, cluster: &Cluster) {
        let client = client(cluster, BOUND / 10);
        for key in &mut self.keys {
            until(&format!("somebody answers for {}", key.name), || {
                let answered = self.runtime.block_on(read(&client, key));
                answered.unwrap_or_else(|why| panic!("{why}")).then_some(())
            });
        }
    }
}
