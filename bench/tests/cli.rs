//! The whole tool against a node in the test's own process.

use kv_proto::{
    cluster_map::{AckMode, ClusterMap, Configuration, Node, Partition, Shard},
    codec,
    error_code::{ErrorCode, WireError},
    frame::{self, Decoder, Kind},
    hello::{Hello, Welcome},
    ids::{
        ClusterId, DiskId, Epoch, ExecutorIndex, HistoryId, Lsn, MapVersion, Member, NodeId, PartitionId, ShardId,
        Version,
    },
    limits::Limits,
    request::{Operation, Request},
    response::{Answered, NodeView, Response},
    routing::partition_of,
};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

const PARTITIONS: u16 = 8;

/// What a node does beside answering.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// Refuses every tenth write.
    Refusing,
    /// Closes a connection after its hundredth request.
    Cutting,
    /// Knows no map.
    Lost,
}

#[derive(Default)]
struct Store {
    values: HashMap<Vec<u8>, Vec<u8>>,
    requests: u64,
}

/// A cluster of two nodes with two executors each, which lead the partitions in turn. Answers a request only where it
/// belongs.
fn cluster(mood: Mood) -> String {
    let listeners = ["a", "b"].map(|name| (name, TcpListener::bind("127.0.0.1:0").expect("a port")));
    let nodes = listeners.each_ref().map(|(name, listener)| Node {
        id: NodeId::new(name).expect("valid"),
        disk: DiskId(1),
        shard: ShardId(0),
        prefers_to_lead: true,
        address: listener.local_addr().expect("bound").to_string(),
        executors: 2,
    });
    let partition = |i: u16| {
        let leader = Member { node: nodes[usize::from(i % 2)].id, disk: DiskId(1) };
        let configuration = Configuration { epoch: Epoch(1), history: HistoryId(0), leader, in_sync: vec![] };
        Partition { shard: ShardId(0), configuration: Some(configuration) }
    };
    let seed = nodes[0].address.clone();
    let map = ClusterMap {
        cluster: ClusterId(1),
        version: MapVersion(1),
        replicas: 1,
        ack: AckMode::Durable,
        shards: vec![Shard::default()],
        partitions: (0..PARTITIONS).map(partition).collect(),
        nodes: nodes.into(),
    };
    for (name, listener) in listeners {
        let (map, store) = (map.clone(), Arc::new(Mutex::new(Store::default())));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (map, store) = (map.clone(), Arc::clone(&store));
                std::thread::spawn(move || serve(stream, NodeId::new(name).expect("valid"), &map, &store, mood));
            }
        });
    }
    format!("kv://{seed}")
}

/// The executor that owns a partition.
fn owner(partition: PartitionId) -> ExecutorIndex {
    ExecutorIndex(partition.0 / 2 % 2)
}

fn serve(mut stream: TcpStream, node: NodeId, map: &ClusterMap, store: &Mutex<Store>, mood: Mood) {
    let mut decoder = Decoder::new(32 * 1024 * 1024);
    let (mut bytes, mut executor, mut requests) = (Vec::new(), ExecutorIndex(0), 0);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let (mut start, mut out) = (0, Vec::new());
        loop {
            let (used, message) = decoder.decode(&bytes[start..]).expect("kvbench sends frames");
            start += used;
            let Some(message) = message else { break };
            if message.kind == Kind::Hello {
                let hello: Hello = codec::decode(message.body).expect("a hello");
                executor = hello.executor.unwrap_or_default();
                let limits = Limits { max_value_bytes: 4096 };
                let welcome =
                    Welcome { cluster: Some(map.cluster), node, disk: DiskId(1), executor, executors: 2, limits };
                frame::append_message(&mut out, Kind::Welcome, 0, |b| codec::encode_into(b, &welcome));
                continue;
            }
            let request: Request<'_> = codec::decode(message.body).expect("a request");
            requests += 1;
            if mood == Mood::Cutting && requests > 100 {
                return;
            }
            let mut store = store.lock().expect("not poisoned");
            let response = respond(&request.operation, (node, executor), map, &mut store, mood);
            frame::append_message(&mut out, Kind::Response, message.id, |b| codec::encode_into(b, &response));
        }
        bytes.drain(..start);
        if stream.write_all(&out).is_err() {
            return;
        }
        match stream.read(&mut chunk) {
            Ok(n @ 1..) => bytes.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
}

fn respond<'a>(
    operation: &Operation<'_>,
    here: (NodeId, ExecutorIndex),
    map: &ClusterMap,
    store: &'a mut Store,
    mood: Mood,
) -> Response<'a> {
    let Some(key) = operation.key() else {
        let led =
            (0..PARTITIONS).map(PartitionId).filter(|p| map.configuration(*p).expect("led").leader.node == here.0);
        let owners = led.map(|p| (p, owner(p))).collect();
        return Response::Map(NodeView { map: (mood != Mood::Lost).then(|| map.clone()), owners });
    };
    let partition = partition_of(key, PARTITIONS);
    if (map.configuration(partition).expect("led").leader.node, owner(partition)) != here {
        return Response::Error(WireError::new(ErrorCode::NotLeader, "not here"));
    }
    let (at, version) = (Answered { partition, epoch: Epoch(1) }, Version { history: HistoryId(0), lsn: Lsn(1) });
    store.requests += 1;
    match *operation {
        Operation::Put { .. } if mood == Mood::Refusing && store.requests.is_multiple_of(10) => {
            Response::Error(WireError::new(ErrorCode::FollowerUnreachable, "alone"))
        }
        Operation::Put { key, value, .. } => {
            store.values.insert(key.to_vec(), value.to_vec());
            Response::Written { at, version }
        }
        _ => match store.values.get(key) {
            Some(value) => Response::Value { at, version, expires_in_ms: None, content_type: "", value },
            None => Response::Missing { at },
        },
    }
}

fn kvbench(flags: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvbench"));
    command.args(flags.split_whitespace()).stdin(Stdio::null());
    command
}

fn outcome(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn run(flags: &str) -> (Option<i32>, String, String) {
    outcome(&kvbench(flags).output().expect("kvbench starts"))
}

/// Runs with `--json`, and reads what was written.
fn run_json(flags: &str) -> (Option<i32>, serde_json::Value, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.json");
    std::fs::write(&path, "x".repeat(100_000)).expect("an older and longer result");
    let output = kvbench(flags).arg("--json").arg(&path).output().expect("kvbench starts");
    let (code, stdout, stderr) = outcome(&output);
    let json = std::fs::read_to_string(&path).expect("a result");
    (code, serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}: {json}\n{stdout}{stderr}")), stdout)
}

#[test]
fn reads_find_every_key_that_was_loaded() {
    let target = cluster(Mood::Well);
    let flags = format!("run --target {target} --keys 5000 --connections 7 --threads 2 --duration 1s --pipeline 8");
    let (code, json, stdout) = run_json(&flags);
    assert_eq!(code, Some(0), "{stdout}");
    assert_eq!(json["schema"], "kvbench/1");
    assert_eq!(json["complete"], true);
    assert_eq!((&json["load"]["keys"], &json["misses"]), (&5000.into(), &0.into()));
    assert_eq!((&json["leaders"], &json["executors"]), (&2.into(), &4.into()));
    assert_eq!(json["errors"], serde_json::json!({}));
    assert!(json["ops"].as_u64().expect("a number") > 0);
    for field in ["ops_per_s", "cpu_s_per_million_ops", "elapsed_s"] {
        assert!(json[field].as_f64().expect("a number") > 0.0, "{field}: {json}");
    }
    let latency = ["p50", "p90", "p99", "p999", "max"].map(|p| json["latency_us"][p].as_u64().expect("a number"));
    assert!(latency.is_sorted() && latency[4] > 0, "{latency:?}");
    let parameters = &json["parameters"];
    assert_eq!(
        (&parameters["op"], &parameters["pipeline"], &parameters["target"]),
        (&"get".into(), &8.into(), &target.as_str().into())
    );
    assert!(stdout.contains("operations/s") && stdout.contains("p99.9"), "{stdout}");
}

#[test]
fn without_a_load_reads_miss_and_writes_do_not_care() {
    let target = cluster(Mood::Well);
    let (code, json, _) = run_json(&format!("run --target {target} --keys 1000 --duration 500ms --no-load"));
    assert_eq!((code, &json["load"]), (Some(0), &serde_json::Value::Null));
    assert_eq!(json["misses"], json["ops"]);
    let (code, json, _) =
        run_json(&format!("run --target {target} --keys 1000 --duration 500ms --op put --value-size 4096"));
    assert_eq!((code, &json["load"], &json["misses"]), (Some(0), &serde_json::Value::Null, &0.into()));
}

#[test]
fn errors_are_counted_by_their_codes_and_make_the_exit_code_1() {
    let target = cluster(Mood::Refusing);
    let (code, json, stdout) = run_json(&format!("run --target {target} --keys 1000 --duration 1s --op put"));
    assert_eq!(code, Some(1));
    let (errors, ops) =
        (json["errors"]["follower_unreachable"].as_u64().expect("some"), json["ops"].as_u64().expect("some"));
    assert!(errors > 0 && ops > errors, "{json}");
    assert!(stdout.contains("follower_unreachable"), "{stdout}");

    let target = cluster(Mood::Cutting);
    let (code, json, _) =
        run_json(&format!("run --target {target} --keys 1000 --duration 2s --op put --connections 4"));
    assert_eq!(code, Some(1));
    let (lost, ops) = (json["errors"]["connection_lost"].as_u64().expect("some"), json["ops"].as_u64().expect("some"));
    assert!(lost > 0 && ops > 400, "connections were made anew: {json}");
}

#[test]
fn an_interrupt_ends_the_run_and_keeps_its_part() {
    let target = cluster(Mood::Well);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.json");
    let mut child = kvbench(&format!("run --target {target} --keys 1000 --duration 10m"))
        .arg("--json")
        .arg(&path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kvbench starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    // The first line of progress shows that it measures.
    let progress = lines.by_ref().map(|l| l.expect("UTF-8")).find(|l| l.contains("ops/s") && !l.contains('%'));
    assert!(progress.is_some());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let rest: Vec<_> = lines.map(|l| l.expect("UTF-8")).collect();
    let output = child.wait_with_output().expect("it ends");
    let (code, stdout, _) = outcome(&output);
    assert_eq!(code, Some(0), "{stdout}");
    assert!(rest.iter().any(|l| l.contains("interrupted")), "{rest:?}");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("a result")).expect("JSON");
    assert_eq!(json["complete"], false);
    assert!(json["ops"].as_u64().expect("a number") > 0);
}

#[test]
fn what_cannot_run_says_why_in_a_sentence() {
    let well = cluster(Mood::Well);
    let lost = cluster(Mood::Lost);
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    for (flags, said) in [
        (format!("run --target {closed}"), "cannot be reached"),
        ("run --target http://127.0.0.1:5000".to_owned(), "kv://host:port"),
        (format!("run --target {lost}"), "controller"),
        (format!("run --target {well} --connections 3"), "--connections 4 or more"),
        (format!("run --target {well} --value-size 4097"), "more than"),
        (format!("run --target {well} --json /no/such/folder/out.json"), "/no/such/folder/out.json"),
        (format!("run --target {well} --connections 1 --threads 2"), "at least one connection a thread"),
        ("walk".to_owned(), "unrecognized subcommand"),
    ] {
        let (code, stdout, stderr) = run(&flags);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{flags}: {stderr}");
        assert!(stderr.contains(said), "{flags}: {stderr}");
        assert!(!stderr.contains("panicked"), "{flags}: {stderr}");
    }
}

#[test]
fn without_arguments_it_explains_itself() {
    let (code, stdout, _) = run("");
    assert_eq!(code, Some(0));
    assert!(stdout.contains("Usage: kvbench") && stdout.contains("kvbench run --op put"), "{stdout}");
}
