//! The codecs against the real servers, where these are installed; without them the tests say so and pass.

use super::{
    Broken, Codec, Connection as _, MemcachedCodec, RedisCodec, Request, StreamConnection,
    model::{Asked, Model, batches, delete, get, increment, put, put_if, told},
    redis::RedisOptions,
    redis::{Wait, WaitPer},
};
use kv_client::Address;
use proptest::{
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use std::{
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// A server, killed when it is dropped.
struct Server {
    process: Child,
    port: u16,
    /// What it writes, it writes here.
    _folder: TempDir,
}

impl Server {
    /// Starts `program` on a free port, and on another one if somebody took that meanwhile; `None` where it is not installed.
    fn start(program: &str, args: impl Fn(u16) -> Vec<String>) -> Option<Server> {
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
            let mut command = Command::new(program);
            let folder = tempfile::tempdir().expect("a folder");
            command
                .current_dir(folder.path())
                .args(args(port))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let process = match command.spawn() {
                Ok(process) => process,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    eprintln!("skipped: {program} is not installed");
                    return None;
                }
                Err(e) => panic!("{program} does not start: {e}"),
            };
            let mut server = Server { process, port, _folder: folder };
            let began = Instant::now();
            while server.process.try_wait().expect("its own child").is_none() {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Some(server);
                }
                assert!(began.elapsed() < PATIENCE, "{program} does not listen on {port}");
                thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("{program} ends when it is started");
    }

    fn redis(more: &[&str]) -> Option<Server> {
        Server::start("redis-server", |port| {
            let port = port.to_string();
            let args = ["--bind", "127.0.0.1", "--port", &port, "--save", "", "--repl-diskless-sync-delay", "0"];
            args.iter().chain(more).map(ToString::to_string).collect()
        })
    }

    fn memcached(more: &[&str]) -> Option<Server> {
        Server::start("memcached", |port| {
            let port = port.to_string();
            let args = ["-u", "root", "-l", "127.0.0.1", "-U", "0", "-p", &port];
            args.iter().chain(more).map(ToString::to_string).collect()
        })
    }

    async fn connect<C: Codec>(&self, codec: C) -> Result<StreamConnection<C>, Broken> {
        let address: Address = format!("127.0.0.1:{}", self.port).parse().expect("an address");
        StreamConnection::connect(&address, codec, PATIENCE).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends `requests` together, with tags from 0, and takes all replies, sorted by their tags.
async fn ask<C: Codec>(connection: &mut StreamConnection<C>, requests: &[Request<'_>]) -> Vec<String> {
    requests.iter().zip(0..).for_each(|(request, tag)| connection.push(tag, request));
    connection.flush().await.expect("sent");
    let mut replies = Vec::new();
    while connection.in_flight() > 0 {
        connection.receive(|tag, reply| replies.push((tag, told(tag, &reply)))).await.expect("received");
    }
    replies.sort();
    replies.into_iter().map(|(_, reply)| reply).collect()
}

/// Asks whatever comes to mind, and compares with a store that is known to be right. The server must be empty.
async fn check_against_model<C: Codec>(connection: &mut StreamConnection<C>) {
    let mut runner = TestRunner::new(Config::default());
    let mut model = Model::default();
    for _ in 0..100 {
        for batch in batches(false, true).new_tree(&mut runner).expect("batches").current() {
            let requests: Vec<_> = batch.iter().map(Asked::request).collect();
            let expected: Vec<_> =
                requests.iter().zip(0..).map(|(r, tag)| model.apply(r).told(tag, false, false)).collect();
            assert_eq!(ask(connection, &requests).await, expected, "{batch:?}");
        }
    }
}

fn with(wait: Option<Wait>, password: Option<&str>, db: u32) -> RedisCodec {
    RedisCodec::new(RedisOptions { user: None, password: password.map(str::to_owned), db, wait })
}

#[tokio::test]
async fn redis_answers_as_the_model() {
    let Some(server) = Server::redis(&[]) else { return };
    let mut connection = server.connect(with(None, None, 0)).await.expect("connected");
    check_against_model(&mut connection).await;
}

#[tokio::test]
async fn redis_with_much_in_flight() {
    let Some(server) = Server::redis(&[]) else { return };
    let mut connection = server.connect(with(None, None, 0)).await.expect("connected");
    check_much_in_flight(&mut connection).await;
}

/// More than the sockets' buffers hold, both ways.
async fn check_much_in_flight<C: Codec>(connection: &mut StreamConnection<C>) {
    let value = "v".repeat(100_000);
    let keys: Vec<String> = (0..200).map(|i| format!("key{i}")).collect();
    let puts: Vec<_> = keys.iter().map(|key| put(key, &value)).collect();
    assert!(ask(connection, &puts).await.iter().all(|reply| reply.ends_with(": written")));
    let gets: Vec<_> = keys.iter().chain(&keys).map(|key| get(key)).collect();
    let replies = ask(connection, &gets).await;
    assert_eq!(replies.len(), 400);
    for (tag, reply) in replies.iter().enumerate() {
        assert!(*reply == format!("{tag}: value {value}"), "{tag}: {} bytes", reply.len());
    }
}

#[tokio::test]
async fn redis_says_what_it_does_not_do() {
    let Some(server) = Server::redis(&["--requirepass", "pw", "--maxmemory", "100kb"]) else { return };
    for (codec, cause) in [
        (with(None, None, 0), "it wants a password"),
        (with(None, Some("no"), 0), "AUTH was refused: \"WRONGPASS"),
        (with(None, Some("pw"), 99), "SELECT was refused"),
    ] {
        let broken = server.connect(codec).await.map(|_| ()).expect_err("refused");
        assert!(broken.code == "refused" && broken.cause.contains(cause), "{broken:?}");
    }
    let mut connection = server.connect(with(None, Some("pw"), 3)).await.expect("let in");
    let replies = ask(&mut connection, &[put("k", "v"), get("k"), increment("n"), delete("k")]).await;
    assert_eq!(replies, ["0: redis_oom", "1: missing", "2: redis_oom", "3: missing"]);

    let Some(server) = Server::redis(&[]) else { return };
    let mut connection = server.connect(with(None, None, 0)).await.expect("let in");
    let replies = ask(&mut connection, &[put("k", "word"), increment("k"), get("k")]).await;
    assert_eq!(replies, ["0: written", "1: redis_err", "2: value word"]);
}

#[tokio::test]
async fn redis_waits_for_its_replica() {
    let Some(leader) = Server::redis(&[]) else { return };
    let of = format!("127.0.0.1 {}", leader.port);
    let Some(replica) = Server::redis(&["--replicaof", &of]) else { return };
    let waiting = |per, timeout| with(Some(Wait { replicas: 1, timeout, per }), None, 0);
    // A replica that has come may load for a while yet.
    let mut per_write = leader.connect(waiting(WaitPer::Write, PATIENCE)).await.expect("connected");
    let mut per_batch = leader.connect(waiting(WaitPer::Batch, PATIENCE)).await.expect("connected");
    assert_eq!(ask(&mut per_write, &[put("k", "v")]).await, ["0: written"]);
    let requests = [put("k", "w"), get("k"), increment("n"), delete("l")];
    let good = ["0: written", "1: value w", "2: number 1", "3: missing"];
    assert_eq!(ask(&mut per_write, &requests).await, good);
    assert_eq!(ask(&mut per_batch, &requests).await, good.map(|reply| reply.replace("number 1", "number 2")));

    let mut at_replica = replica.connect(with(None, None, 0)).await.expect("connected");
    assert_eq!(ask(&mut at_replica, &[get("k"), put("k", "x")]).await, ["0: value w", "1: redis_readonly"]);

    drop(replica);
    for per in [WaitPer::Write, WaitPer::Batch] {
        let mut connection = leader.connect(waiting(per, Duration::from_millis(50))).await.expect("connected");
        let replies = ask(&mut connection, &[put("k", "x"), get("k"), increment("n")]).await;
        assert_eq!(replies, ["0: not_replicated, unknown", "1: value x", "2: not_replicated, unknown"]);
    }
}

#[tokio::test]
async fn memcached_answers_as_the_model() {
    let Some(server) = Server::memcached(&[]) else { return };
    let mut connection = server.connect(MemcachedCodec::new(false)).await.expect("connected");
    check_against_model(&mut connection).await;
}

#[tokio::test]
async fn memcached_with_much_in_flight() {
    let Some(server) = Server::memcached(&[]) else { return };
    let mut connection = server.connect(MemcachedCodec::new(false)).await.expect("connected");
    check_much_in_flight(&mut connection).await;
}

#[tokio::test]
async fn memcached_takes_lines_of_many_long_keys() {
    let Some(server) = Server::memcached(&[]) else { return };
    let mut connection = server.connect(MemcachedCodec::new(false)).await.expect("connected");
    let keys: Vec<String> = (0..250).map(|i| format!("{i:0>250}")).collect();
    let puts: Vec<_> = keys.iter().step_by(3).map(|key| put(key, "v")).collect();
    assert!(ask(&mut connection, &puts).await.iter().all(|reply| reply.ends_with(": written")));
    let gets: Vec<_> = keys.iter().map(|key| get(key)).collect();
    for (tag, reply) in ask(&mut connection, &gets).await.into_iter().enumerate() {
        let what = if tag.is_multiple_of(3) { "value v" } else { "missing" };
        assert_eq!(reply, format!("{tag}: {what}"));
    }
}

#[tokio::test]
async fn memcached_writes_if_nobody_else_has() {
    let Some(server) = Server::memcached(&[]) else { return };
    let mut connection = server.connect(MemcachedCodec::new(true)).await.expect("connected");
    assert_eq!(ask(&mut connection, &[put_if("k", "v", 1), put("k", "v")]).await, ["0: missing", "1: written"]);
    let told = ask(&mut connection, &[get("k")]).await;
    let cas: u64 = told[0].strip_prefix("0: value v 0-").expect("a version").parse().expect("a number");
    let replies = ask(&mut connection, &[put_if("k", "w", cas), put_if("k", "x", cas), get("k")]).await;
    assert_eq!(replies[..2], ["0: written", "1: conflict"]);
    assert!(replies[2].starts_with("2: value w 0-"), "{replies:?}");
}

#[tokio::test]
async fn memcached_says_what_it_does_not_do() {
    let Some(server) = Server::memcached(&["-I", "512k"]) else { return };
    let mut connection = server.connect(MemcachedCodec::new(false)).await.expect("connected");
    let large = "v".repeat(600_000);
    let requests = [put("k", "old"), put("k", &large), get("k"), put("w", "word"), increment("w"), get("w")];
    let replies = ask(&mut connection, &requests).await;
    // The old value is dropped with the new one.
    let expected = [
        "0: written",
        "1: memcached_too_large",
        "2: missing",
        "3: written",
        "4: memcached_client_error",
        "5: value word",
    ];
    assert_eq!(replies, expected);
}

/// Neither speaks the other's protocol, and each is told so.
#[tokio::test]
async fn the_wrong_server_is_noticed() {
    let (Some(redis), Some(memcached)) = (Server::redis(&[]), Server::memcached(&[])) else { return };
    let broken = redis.connect(MemcachedCodec::new(false)).await.map(|_| ()).expect_err("refused");
    assert!(broken.cause.contains("is this memcached"), "{broken:?}");
    let broken = memcached.connect(with(None, None, 0)).await.map(|_| ()).expect_err("refused");
    assert!(broken.cause.contains("is this Redis?"), "{broken:?}");
}
