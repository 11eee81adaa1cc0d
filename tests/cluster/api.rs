//! A whole cluster serves the documented API, spreads its keys, and tells about itself.

use crate::common::{Answer, BOUND, Cluster, run, runs, until};
use hyper::{
    Method,
    header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

#[test]
fn the_documented_api_from_put_to_delete() {
    let cluster = Cluster::start(&[]);
    let missing = (404, json!({"status": "Key not found"}));
    let members = |(status, body): (u16, Value), names: &[&str]| {
        (status, names.iter().map(|n| ((*n).to_owned(), body[n].clone())).collect::<serde_json::Map<_, _>>().into())
    };
    let get = |key: &str| members(cluster.get(key).pair(), &["key", "value"]);
    let status = |answer: Answer| members(answer.pair(), &["status"]);

    assert_eq!(status(cluster.get("nothing")), missing);
    let values = [
        json!("text"),
        json!(""),
        json!(42),
        json!(-1.5e300),
        json!(true),
        Value::Null,
        json!([1, "two", {"three": []}]),
        json!({"nested": {"emoji": "🔑", "escape": "\"\\\u{7}"}}),
    ];
    for (i, value) in values.iter().enumerate() {
        let key = format!("value{i}");
        assert_eq!(cluster.put(&key, value).pair(), (200, json!({"status": "Successful"})), "{value}");
        assert_eq!(get(&key), (200, json!({"key": key, "value": value})));
    }
    let keys = [
        ("a%26b%3Dc", "a&b=c"),
        ("100%25", "100%"),
        ("x/y%3Fz", "x/y?z"),
        ("one+two%2Bthree", "one two+three"),
        ("%F0%9F%94%91%20%C3%BC", "🔑 ü"),
    ];
    for (encoded, key) in keys {
        assert_eq!(cluster.put(key, &json!(key)).status, 200, "{key}");
        assert_eq!(get(encoded), (200, json!({"key": key, "value": key})));
    }

    let body = r#"{"key":"slash","value":1}"#;
    let json_type = [(CONTENT_TYPE, "application/json")];
    assert_eq!(status(cluster.send(Method::PUT, "/put/", &json_type, body)), (200, json!({"status": "Successful"})));
    let found = cluster.send(Method::GET, "/get/?key=slash", &[], "");
    assert_eq!(members(found.pair(), &["value"]), (200, json!({"value": 1})));
    let found = cluster.send(Method::POST, "/get?key=slash", &[], "");
    assert_eq!(members(found.pair(), &["value"]), (200, json!({"value": 1})));

    let gone = (200, json!({"status": "Delete successful"}));
    assert_eq!(status(cluster.send(Method::DELETE, "/delete?key=slash", &[], "")), gone);
    assert_eq!(status(cluster.send(Method::DELETE, "/delete?key=slash", &[], "")), missing);
    assert_eq!(status(cluster.get("slash")), missing);
    assert_eq!(status(cluster.send(Method::GET, "/delete/?key=value0", &[], "")), gone);
    assert_eq!(status(cluster.get("value0")), missing);

    for path in ["/healthz", "/readyz"] {
        assert_eq!(cluster.send(Method::GET, path, &[], "").status, 200, "{path}");
    }
    for (method, path, body, expected) in [
        (Method::POST, "/put", "{", 400),
        (Method::POST, "/put", r#"{"value":1}"#, 400),
        (Method::POST, "/put", r#"{"key":"","value":1}"#, 400),
        (Method::GET, "/get", "", 400),
        (Method::GET, "/put", "", 405),
        (Method::GET, "/nowhere", "", 404),
    ] {
        let answer = cluster.send(method.clone(), path, &json_type, body);
        assert_eq!(answer.status, expected, "{method} {path} {body}: {answer:?}");
    }
}

#[test]
fn raw_values_with_etags_and_the_same_from_a_shell() {
    let cluster = Cluster::start(&["--shards", "1"]);
    let raw: Vec<u8> = (0..=255).collect();
    let path = "/v1/kv/raw%2Fkey";
    let picture = [(CONTENT_TYPE, "image/png")];
    let written = cluster.send(Method::PUT, path, &picture, raw.clone());
    assert!(written.status.is_success(), "{written:?}");
    let found = cluster.send(Method::GET, path, &[], "");
    assert_eq!(
        (found.status.as_u16(), &found.headers[CONTENT_TYPE], &found.body[..]),
        (200, &"image/png".parse().expect("a header"), &raw[..])
    );
    let etag = found.headers[ETAG].to_str().expect("text").to_owned();
    assert_eq!(cluster.send(Method::GET, path, &[(IF_NONE_MATCH, &etag)], "").status, 304);
    let head = cluster.send(Method::HEAD, path, &[], "");
    assert_eq!(
        (head.status.as_u16(), head.headers[ETAG].to_str().expect("text"), head.body.len()),
        (200, etag.as_str(), 0)
    );
    assert!(cluster.send(Method::PUT, path, &[(IF_MATCH, &etag)], "second").status.is_success());
    assert_eq!(cluster.send(Method::PUT, path, &[(IF_MATCH, &etag)], "third").status, 412);

    let kv = |arguments: &[&str]| run(&mut cluster.kv(arguments));
    assert_eq!(kv(&["get", "raw/key"]), (0, "second\n".to_owned(), String::new()), "lines are told with their end");
    assert_eq!(kv(&["put", "from a shell", "-n"]), (0, String::new(), String::new()));
    assert_eq!(cluster.send(Method::GET, "/v1/kv/from%20a%20shell", &[], "").body, "-n");
    assert_eq!(kv(&["delete", "from a shell"]).0, 0);
    for command in ["get", "delete"] {
        let (code, stdout, stderr) = kv(&[command, "from a shell"]);
        assert_eq!((code, stdout.as_str()), (1, ""));
        assert!(stderr.contains("has no value"), "{stderr}");
    }
    let (code, _, stderr) = kv(&["put", "large", &"x".repeat(100_000), "--cluster", "http://127.0.0.1:1"]);
    assert!(code == 2 && stderr.contains("no answer from the router at http://127.0.0.1:1"), "{stderr}");
}

#[test]
fn the_manifest_is_true_and_keys_spread_over_all_leaders() {
    let cluster = Cluster::start(&[]);
    let manifest = cluster.manifest();
    assert_eq!(manifest.http, cluster.url);
    let names: Vec<_> = manifest.processes.iter().map(|p| (p.name.as_str(), p.role.as_str())).collect();
    let expected = [
        ("router", "router"),
        ("shard0-leader", "leader"),
        ("shard0-follower", "follower"),
        ("shard1-leader", "leader"),
        ("shard1-follower", "follower"),
        ("shard2-leader", "leader"),
        ("shard2-follower", "follower"),
        ("supervisor", "supervisor"),
    ];
    assert_eq!(names, expected);
    for process in &manifest.processes {
        assert!(runs(process.pid), "{process:?}");
        if let Some(address) = &process.address {
            TcpStream::connect(address).unwrap_or_else(|e| panic!("{process:?}: {e}"));
        }
    }
    assert_eq!(cluster.process("supervisor").pid, cluster.supervisor.pid());

    for i in 0..300 {
        assert_eq!(cluster.put(&format!("key{i}"), &json!(i)).status, 200);
    }
    until("all replicas agree", || cluster.replicas_agree().then_some(()));
    let topology = cluster.topology();
    let keys: BTreeMap<&str, u64> = (topology.nodes.iter())
        .map(|n| (n.node.as_str(), n.stats.as_ref().expect("it answers").replicas.iter().map(|r| r.keys).sum()))
        .collect();
    for shard in 0..3 {
        let (leader, follower) = (keys[&*format!("shard{shard}-leader")], keys[&*format!("shard{shard}-follower")]);
        assert!((60..=140).contains(&leader), "an even share of 300 keys: {keys:?}");
        assert_eq!(leader, follower);
    }
    assert_eq!(keys.values().sum::<u64>(), 600);

    let (code, stdout, stderr) = run(&mut cluster.kv(&["status", "--partitions"]));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("data live in memory") && stdout.contains("shard2-follower"), "{stdout}");
    assert_eq!(stdout.lines().filter(|l| l.ends_with("  equal")).count(), 64, "{stdout}");
    let (code, stdout, _) = run(&mut cluster.kv(&["status", "--json"]));
    let parsed: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, parsed["map"]["partitions"].as_array().map(Vec::len)), (0, Some(64)));
}

#[test]
fn strangers_on_a_binary_port_are_told_and_harm_nothing() {
    let cluster = Cluster::start(&["--shards", "1"]);
    assert_eq!(cluster.put("before", &json!(1)).status, 200);
    let node = cluster.process("shard0-leader").address.expect("it listens");
    let say = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&node).expect("it listens");
        stream.set_read_timeout(Some(BOUND)).expect("a timeout");
        // It may have closed already, on what it saw first.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let answer = say(b"GET /get?key=a HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.contains("this is the binary port of a kv node"), "{answer:?}");
    for garbage in [&b"*1\r\n$4\r\nPING\r\n"[..], &[0; 1000], &[0xff; 100_000], &[0xc5, 0x4b, 2, 0, 9, 9, 9, 9, 4]] {
        say(garbage);
    }
    assert_eq!(cluster.get("before").json()["value"], json!(1));
    assert_eq!(cluster.put("after", &json!(2)).status, 200);
    assert!(runs(cluster.process("shard0-leader").pid));
}
