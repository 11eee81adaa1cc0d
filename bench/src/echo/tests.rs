//! The server against the client's pipeline, over loopback, in one thread.

use super::*;
use kv_client::{Address, ConnectOptions, Pipeline};
use kv_proto::{
    codec,
    error_code::{ErrorCode, WireError},
    frame,
    request::{Condition, Operation, Request},
    response::Response,
};
use std::{collections::HashMap, future::Future};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const KEY: &[u8] = b"key:000000000001";

fn options(flags: &str) -> EchoOptions {
    #[derive(clap::Parser)]
    struct Alone {
        #[command(flatten)]
        options: EchoOptions,
    }
    let words = ["echo", "--listen", "127.0.0.1:0"].into_iter().chain(flags.split_whitespace());
    <Alone as clap::Parser>::try_parse_from(words).expect(flags).options
}

/// Runs `client` against a server with these flags.
fn with_server<F: Future<Output = ()>>(flags: &str, client: impl FnOnce(SocketAddr) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        spawn_local(serve(listener, Echo::new(&options(flags))));
        client(address).await;
    });
}

async fn connect(address: SocketAddr) -> Pipeline {
    let address: Address = format!("kv://{address}").parse().expect("an address");
    let patient = ConnectOptions { timeout: Duration::from_secs(60), ..ConnectOptions::default() };
    Pipeline::connect(&address, &patient).await.expect("it listens")
}

fn request(operation: Operation<'_>) -> Request<'_> {
    Request { deadline_ms: 2000, operation_id: None, operation }
}

fn get() -> Request<'static> {
    request(Operation::Get { key: KEY })
}

/// Asks one thing and waits for its answer.
async fn ask(pipeline: &mut Pipeline, request: &Request<'_>) -> &'static str {
    pipeline.push(1, request);
    pipeline.flush().await.expect("connected");
    let mut answer = "";
    let receive = pipeline.receive(|_, response| {
        answer = match response {
            Response::Value { .. } => "value",
            Response::Written { .. } => "written",
            Response::Error(_) => "error",
            _ => "other",
        };
    });
    receive.await.expect("connected");
    answer
}

#[test]
fn every_answer_has_the_id_of_its_request_and_fits_it() {
    with_server("--value-size 100", async |address| {
        let mut pipeline = connect(address).await;
        let put =
            Operation::Put { key: KEY, value: &[1; 500], content_type: "", condition: Condition::Any, ttl_ms: None };
        let mut expected = HashMap::new();
        for round in 0..20_u64 {
            for i in 0..1000 {
                let (id, operation) = (round << 32 | i, if i % 3 == 0 { put } else { Operation::Get { key: KEY } });
                pipeline.push(id, &request(operation));
                expected.insert(id, i % 3 == 0);
            }
            pipeline.flush().await.expect("connected");
            let mut last = 0;
            while pipeline.in_flight() > 0 {
                let receive = pipeline.receive(|id, response| {
                    let written = expected.remove(&id).expect("asked for, and not answered yet");
                    let version = match response {
                        Response::Value { value, version, .. } if !written => {
                            assert_eq!(value.len(), 100);
                            version
                        }
                        Response::Written { version, .. } if written => version,
                        other => panic!("{id}: {other:?}"),
                    };
                    assert!(version.lsn.0 > last, "versions grow");
                    last = version.lsn.0;
                });
                receive.await.expect("connected");
            }
        }
        assert!(expected.is_empty());
    });
}

#[test]
fn it_leads_every_partition_of_its_cluster() {
    with_server("", async |address| {
        let mut pipeline = connect(address).await;
        let node = pipeline.welcome().node;
        let view = pipeline.node_view().await.expect("a view");
        let map = view.map.expect("a map");
        assert!(map.partitions.iter().all(|p| p.configuration.as_ref().is_some_and(|c| c.leader.node == node)));
        assert_eq!((map.partitions.len(), view.owners.len()), (8, 8));
        assert_eq!(map.node(node).expect("known").address, address.to_string());
    });
}

#[test]
fn no_answer_comes_before_its_delay() {
    const DELAY: Duration = Duration::from_millis(20);
    with_server("--delay 20ms", async |address| {
        let mut pipeline = connect(address).await;
        let mut sent = HashMap::new();
        for id in 0..50 {
            pipeline.push(id, &get());
            sent.insert(id, Instant::now());
            pipeline.flush().await.expect("connected");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while pipeline.in_flight() > 0 {
            let receive =
                pipeline.receive(|id, _| assert!(sent[&id].elapsed() >= DELAY, "{id}: {:?}", sent[&id].elapsed()));
            receive.await.expect("connected");
        }
    });
}

#[test]
fn every_nth_request_fails_over_all_connections() {
    with_server("--error-every 7", async |address| {
        let mut pipelines = [connect(address).await, connect(address).await];
        for n in 1..=100 {
            let answer = ask(&mut pipelines[n % 2], &get()).await;
            assert_eq!(answer, if n % 7 == 0 { "error" } else { "value" }, "{n}");
        }
        // In one piece, too.
        (0..1000).for_each(|id| pipelines[0].push(id, &get()));
        pipelines[0].flush().await.expect("connected");
        let mut failed = Vec::new();
        while pipelines[0].in_flight() > 0 {
            let receive = pipelines[0].receive(|id, response| match response {
                Response::Error(e) => {
                    assert_eq!(e.code, ErrorCode::Overloaded);
                    failed.push(id + 101);
                }
                _ => assert_ne!((id + 101) % 7, 0),
            });
            receive.await.expect("connected");
        }
        assert_eq!(failed, (101..1101).filter(|n| n % 7 == 0).collect::<Vec<_>>());
    });
}

#[test]
fn nothing_is_answered_in_a_stall() {
    with_server("--stall-at 50ms --stall-for 300ms", async |address| {
        let (mut first, mut second) = (connect(address).await, connect(address).await);
        let begin = Instant::now();
        ask(&mut first, &get()).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        ask(&mut second, &get()).await;
        assert!(begin.elapsed() >= Duration::from_millis(350), "{:?}", begin.elapsed());
        let after = Instant::now();
        (0..20).for_each(|id| first.push(id, &get()));
        first.flush().await.expect("connected");
        while first.in_flight() > 0 {
            first.receive(|_, _| {}).await.expect("connected");
        }
        assert!(after.elapsed() < Duration::from_secs(60), "it goes on");
    });
}

#[test]
fn a_stall_has_a_begin_and_an_end() {
    let echo = Echo::new(&options("--stall-at 3s --stall-for 1s"));
    let now = Instant::now();
    let after = |ms| now + Duration::from_millis(ms);
    assert_eq!(echo.stalled_until(after(3500)), None, "nothing was asked yet");
    echo.asked(now);
    echo.asked(after(100));
    for (ms, end) in [(0, None), (2999, None), (3000, Some(4000)), (3999, Some(4000)), (4000, None)] {
        assert_eq!(echo.stalled_until(after(ms)), end.map(after), "{ms}");
    }
}

#[test]
fn long_answers_to_a_caller_that_reads_late_are_all_given() {
    with_server("--value-size 1000000", async |address| {
        let mut pipeline = connect(address).await;
        (0..64).for_each(|id| pipeline.push(id, &get()));
        pipeline.flush().await.expect("connected");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut next = 0;
        while pipeline.in_flight() > 0 {
            let receive = pipeline.receive(|id, response| {
                assert_eq!(id, next);
                assert!(matches!(response, Response::Value { value, .. } if value.len() == 1_000_000));
                next += 1;
            });
            receive.await.expect("connected");
        }
        let long = vec![1; 5_000_000];
        let put = Operation::Put { key: KEY, value: &long, content_type: "", condition: Condition::Any, ttl_ms: None };
        assert_eq!(ask(&mut pipeline, &request(put)).await, "written");
    });
}

#[test]
fn what_is_no_request_is_refused_and_its_connection_closed() {
    with_server("", async |address| {
        let mut replication = Vec::new();
        frame::append_message(&mut replication, frame::Kind::Replication, 0, |body| body.push(1));
        for (bytes, code) in [
            (b"GET /get?key=a HTTP/1.1\r\n\r\n".as_slice(), ErrorCode::BadFrame),
            (b"*1\r\n$4\r\nPING\r\n", ErrorCode::BadFrame),
            (&replication, ErrorCode::BadFrame),
        ] {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.write_all(bytes).await.expect("connected");
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.expect("closed in order");
            let mut decoder = frame::Decoder::new(4096);
            let (_, message) = decoder.decode(&said).expect("a frame");
            let message = message.expect("a refusal");
            let refusal: WireError = codec::decode(message.body).expect("a refusal");
            assert_eq!((message.kind, refusal.code), (frame::Kind::Refusal, code));
        }
    });
}

#[test]
fn flags_that_make_no_sense_are_refused() {
    for (flags, said) in [
        ("--listen nowhere", "--listen"),
        ("--stall-at 3s", "--stall-for"),
        ("--stall-for 3s", "--stall-at"),
        ("--delay 2days", "longer than a day"),
        ("--delay soon", "write 5ms"),
        ("--error-every 0", "--error-every"),
        ("--value-size 16777217", "--value-size"),
    ] {
        let words = ["kvbench", "echo"].into_iter().chain(flags.split_whitespace());
        let error = <crate::options::Cli as clap::Parser>::try_parse_from(words).expect_err(flags).to_string();
        assert!(error.contains(said), "{flags}: {error}");
    }
}

/// What an answer costs beside the system calls: `cargo test --release -p kvbench -- --ignored --nocapture cost_of`.
#[test]
#[ignore = "a measurement, of release builds"]
fn cost_of_an_answer() {
    let mut asked = Vec::new();
    for id in 0..64 {
        frame::append_message(&mut asked, frame::Kind::Request, id, |body| codec::encode_into(body, &get()));
    }
    let answers = Answers::new(64, None);
    let (mut out, mut decoder) = (Vec::new(), frame::Decoder::new(1 << 20));
    let here = "127.0.0.1:1".parse().expect("an address");
    let mut best = Duration::MAX;
    for _ in 0..20_000 {
        let before = Instant::now();
        out.clear();
        let mut at = 0;
        while let (used, Some(message)) = decoder.decode(&asked[at..]).expect("frames") {
            at += used;
            answers.append(&mut out, &message, here);
        }
        best = best.min(before.elapsed());
    }
    println!("{:.1} ns a frame", best.as_nanos() as f64 / 64.0);
}
