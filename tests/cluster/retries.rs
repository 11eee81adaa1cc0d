//! A write that is asked for again is applied once: when its connection is cut, and when the node that knew of it was
//! killed.

use crate::{
    binary::Call,
    common::{BOUND, Cluster, until},
    failures::kill_and_wait,
};
use kv_client::{Client, PutOptions};
use kv_proto::{
    frame::{Decoder, Kind},
    ids::{ClientId, Lsn, MapVersion, OperationId},
    limits::Limits,
    request::{Condition, Operation},
    response::Response,
    routing::partition_of,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
};

/// Stands between clients and a node, and cuts connections: some in place of a request, some in place of the answer to
/// a write, so that it is applied and nobody is told.
struct Cutter {
    address: String,
    cuts: Arc<AtomicU64>,
}

const REQUESTS_A_CUT: u64 = 7;
const ANSWERS_A_CUT: u64 = 3;

impl Cutter {
    fn start(node: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let (cuts, requests, answers) = (Arc::new(AtomicU64::new(0)), Arc::default(), Arc::default());
        let counted = Arc::clone(&cuts);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let node = TcpStream::connect(&node).expect("the node listens");
                relay(&client, &node, Kind::Request, |_| true, REQUESTS_A_CUT, &requests, &counted);
                let is_written =
                    |body: &[u8]| matches!(kv_proto::codec::decode::<Response<'_>>(body), Ok(Response::Written { .. }));
                relay(&node, &client, Kind::Response, is_written, ANSWERS_A_CUT, &answers, &counted);
            }
        });
        Cutter { address, cuts }
    }
}

/// Passes on what comes, message by message; instead of every so many that are of this kind, it closes both ends.
fn relay(
    from: &TcpStream,
    to: &TcpStream,
    kind: Kind,
    counts: impl Fn(&[u8]) -> bool + Send + 'static,
    every: u64,
    seen: &Arc<AtomicU64>,
    cuts: &Arc<AtomicU64>,
) {
    let [mut from, mut to] = [from, to].map(|stream| stream.try_clone().expect("a handle"));
    let (seen, cuts) = (Arc::clone(seen), Arc::clone(cuts));
    thread::spawn(move || {
        let mut decoder = Decoder::new(Limits::default().max_message_bytes());
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let (used, message) = decoder.decode(&received).expect("frames");
            let is_cut = message.is_some_and(|message| {
                let counts = message.kind == kind && counts(message.body);
                counts && (seen.fetch_add(1, SeqCst) + 1).is_multiple_of(every)
            });
            let passed = !is_cut && to.write_all(&received[..used]).is_ok();
            received.drain(..used);
            if is_cut {
                cuts.fetch_add(1, SeqCst);
            }
            if passed && used > 0 {
                continue;
            }
            let read = if passed { from.read(&mut buffer).unwrap_or(0) } else { 0 };
            if read == 0 {
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
            received.extend_from_slice(&buffer[..read]);
        }
    });
}

/// Every write is on the version of the one before it: applied twice, or not at all, the next would fail.
#[test]
fn a_write_whose_connection_is_cut_is_applied_once() {
    const WRITES: u64 = 60;
    let cluster = Cluster::start(&["--shards", "1"]);
    let mut map = cluster.topology().map;
    let mut cutters = Vec::new();
    for node in &mut map.nodes {
        let cutter = Cutter::start(std::mem::take(&mut node.address));
        node.address.clone_from(&cutter.address);
        cutters.push(cutter);
    }
    // What the nodes tell of their addresses is older.
    map.version = MapVersion(u64::MAX);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = Client::builder().map(map).deadline(BOUND).build().expect("a map");
        let mut before = client.put(b"counter", b"0").await.expect("written").version;
        for n in 1..=WRITES {
            let options = PutOptions { condition: Condition::Version(before), ..PutOptions::default() };
            let written = client.put_with(b"counter", n.to_string().as_bytes(), options).await.expect("written once");
            assert_eq!(written.version.lsn, before.lsn.next(), "nothing else was written");
            before = written.version;
        }
        let found = client.get(b"counter").await.expect("read").expect("there");
        assert_eq!((&*found.value, found.version), (WRITES.to_string().as_bytes(), before));
        // What changes nothing is answered once, too.
        for n in 0..WRITES {
            assert_eq!(client.delete(format!("nothing-{n}").as_bytes()).await, Ok(None));
        }
    });
    let cuts: u64 = cutters.iter().map(|c| c.cuts.load(SeqCst)).sum();
    assert!(cuts > WRITES / 3, "{cuts} connections were cut");
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
}

fn put<'a>(value: &'a [u8], condition: Condition) -> Operation<'a> {
    Operation::Put { key: b"key", value, content_type: "", condition, ttl_ms: None }
}

/// Asks whoever leads the partition of `key`, as a client does that has seen nothing.
fn ask(cluster: &Cluster, sequence: Option<u64>, operation: Operation<'_>) -> String {
    let map = cluster.topology().map;
    let partition = partition_of(b"key", map.partition_count());
    let leader = map.configuration(partition).expect("it is led").leader.node;
    let address = cluster.process(leader.as_str()).address.expect("a node has an address");
    let id = sequence.map(|sequence| OperationId { client: ClientId(77), sequence, known_lsn: Lsn(0) });
    let (mut call, _) = Call::client(&address, None);
    call.send_with(&[(1, id, operation)]);
    call.next(|kind, _, body| {
        assert_eq!(kind, Kind::Response);
        match kv_proto::codec::decode(body).expect("a response") {
            Response::Written { version, .. } => format!("written {}", version.lsn),
            Response::ConditionFailed { current, .. } => format!("failed at {}", current.expect("a version").lsn),
            Response::Missing { .. } => "missing".to_owned(),
            Response::Value { value, .. } => String::from_utf8_lossy(value).into_owned(),
            other => format!("{other:?}"),
        }
    })
}

/// With what there was of it in the log, and then in a checkpoint.
#[test]
fn a_retry_is_known_again_after_any_node_was_killed() {
    // Logs so small that they are reused soon.
    let environment =
        [("KV_MAX_VALUE_BYTES", "65536"), ("KV_SEGMENT_BYTES", "1152KiB"), ("KV_MAX_LOG_BYTES", "3456KiB")];
    let cluster = Cluster::start_with(&["--shards", "1", "--restart"], &environment);
    let asked = [
        (1, put(b"first", Condition::Absent)),
        (2, put(b"never", Condition::Absent)),
        (3, Operation::Delete { key: b"key", condition: Condition::Any }),
        (4, Operation::Delete { key: b"key", condition: Condition::Any }),
        (5, put(b"second", Condition::Any)),
    ];
    let answers: Vec<String> = asked.iter().map(|(id, operation)| ask(&cluster, Some(*id), *operation)).collect();
    assert_eq!(answers, ["written 1", "failed at 1", "written 3", "missing", "written 5"]);
    let last = vec![b'l'; 60_000];
    let last = String::from_utf8(last).expect("a text");
    assert_eq!(ask(&cluster, None, put(last.as_bytes(), Condition::Any)), "written 6");
    let check = || {
        for ((id, operation), answer) in asked.iter().zip(&answers) {
            assert_eq!(ask(&cluster, Some(*id), *operation), *answer, "operation {id}");
        }
        assert_eq!(ask(&cluster, None, Operation::Get { key: b"key" }), last, "nothing was done again");
    };
    check();
    let kill_each = || {
        for name in ["shard0-leader", "shard0-follower"] {
            kill_and_wait(&cluster, name);
            cluster.until_ready();
            check();
        }
    };
    kill_each();
    let partition = partition_of(b"key", cluster.topology().map.partition_count());
    for node in ["shard0-leader", "shard0-follower"] {
        let folder = cluster.dir.path().join("nodes").join(node).join("checkpoints");
        until(&format!("{node} has a checkpoint of what was asked"), || {
            assert!(ask(&cluster, None, put(last.as_bytes(), Condition::Any)).starts_with("written"));
            let names = std::fs::read_dir(&folder).ok()?.flatten();
            let has_it = |name: String| {
                let (of, start) = name.strip_suffix(".ckpt")?.strip_prefix('p')?.split_once('-')?;
                (of.parse::<u16>() == Ok(partition.0) && start.parse::<u64>().ok()? >= 6).then_some(())
            };
            names.filter_map(|n| n.file_name().into_string().ok()).find_map(has_it)
        });
    }
    kill_each();
}
