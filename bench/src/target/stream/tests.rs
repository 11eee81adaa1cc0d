//! Against servers of a few lines over the loopback.

use super::*;
use crate::target::{
    MemcachedCodec, RedisCodec,
    http::{HttpApi, HttpCodec},
    model::{get, put, told},
    redis::RedisOptions,
};
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream as StdStream},
    thread::{self, JoinHandle},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Takes one connection and serves it by `serve`.
fn server(serve: impl FnOnce(StdStream) + Send + 'static) -> (Address, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string().parse().expect("an address");
    (address, thread::spawn(move || serve(listener.accept().expect("a connection").0)))
}

/// A server of Redis' protocol that has answered the greeting.
fn redis(serve: impl FnOnce(StdStream) + Send + 'static) -> (Address, JoinHandle<()>) {
    server(|mut stream| {
        let mut ping = [0; 14];
        stream.read_exact(&mut ping).expect("a greeting");
        assert_eq!(&ping, b"*1\r\n$4\r\nPING\r\n");
        stream.write_all(b"+PONG\r\n").expect("taken");
        serve(stream);
    })
}

async fn connect(address: &Address) -> StreamConnection<RedisCodec> {
    StreamConnection::connect(address, RedisCodec::new(RedisOptions::default()), PATIENCE).await.expect("connected")
}

/// What the next `receive` says.
async fn received<C: Codec>(connection: &mut StreamConnection<C>) -> (Vec<String>, Result<usize, &'static str>) {
    let mut replies = Vec::new();
    let result = connection.receive(|tag, reply| replies.push(told(tag, &reply))).await;
    (replies, result.map_err(|e| e.code))
}

const GET_K: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";

fn read_exactly(stream: &mut StdStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).expect("as many");
    bytes
}

#[tokio::test]
async fn replies_come_with_their_tags_and_whole() {
    let (address, server) = redis(|mut stream| {
        assert_eq!(read_exactly(&mut stream, 2 * GET_K.len()), [GET_K, GET_K].concat());
        stream.write_all(b"$1\r\na\r\n$3\r\nb").expect("taken");
        thread::sleep(Duration::from_millis(20));
        stream.write_all(b"cd\r\n").expect("taken");
    });
    let mut connection = connect(&address).await;
    assert_eq!(received(&mut connection).await, (vec![], Ok(0)), "nothing is in flight");
    connection.push(7, &get("k"));
    connection.push(3, &get("k"));
    assert_eq!(connection.in_flight(), 2);
    connection.flush().await.expect("sent");
    assert_eq!(received(&mut connection).await, (vec!["7: value a".to_owned()], Ok(1)));
    assert_eq!(connection.in_flight(), 1);
    assert_eq!(received(&mut connection).await, (vec!["3: value bcd".to_owned()], Ok(1)));
    server.join().expect("served");
}

/// Each side would wait for the other for ever if the client did not read while it sends.
#[tokio::test]
async fn a_server_that_answers_before_it_reads_on_is_read() {
    const REQUESTS: usize = 400;
    let value = "v".repeat(64 * 1024);
    let command = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{value}\r\n", value.len()).len();
    let (address, server) = redis(move |mut stream| {
        for _ in 0..REQUESTS {
            read_exactly(&mut stream, command);
            // So much in answer to a write is an error that tells a long story.
            stream.write_all(format!("-E {}\r\n", "x".repeat(60_000)).as_bytes()).expect("taken");
        }
    });
    let mut connection = connect(&address).await;
    for tag in 0..REQUESTS {
        connection.push(tag as u64, &put("k", &value));
    }
    connection.flush().await.expect("sent");
    assert!(connection.outgoing.bytes.capacity() <= KEEP_BYTES, "what the burst took is given back");
    let mut count = 0;
    while connection.in_flight() > 0 {
        let (replies, result) = received(&mut connection).await;
        assert!(replies.iter().all(|reply| reply.ends_with("redis_e")));
        count += result.expect("good");
    }
    assert_eq!(count, REQUESTS);
    assert!(connection.incoming.is_empty());
    connection.try_read();
    assert!(connection.incoming.capacity() <= KEEP_BYTES, "what the burst took is given back");
    server.join().expect("served");
}

#[tokio::test]
async fn a_slow_reader_is_waited_for_and_a_cancelled_flush_goes_on() {
    let value = "v".repeat(8 * 1024 * 1024);
    let head = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$8388608\r\n".len();
    let (address, server) = redis(move |mut stream| {
        thread::sleep(Duration::from_millis(100));
        let bytes = read_exactly(&mut stream, head + 8 * 1024 * 1024 + 2);
        assert!(bytes[head..bytes.len() - 2].iter().all(|b| *b == b'v'), "nothing is sent twice");
        assert_eq!(read_exactly(&mut stream, GET_K.len()), GET_K);
        stream.write_all(b"+OK\r\n$-1\r\n").expect("taken");
    });
    let mut connection = connect(&address).await;
    connection.push(0, &put("k", &value));
    let cancelled = tokio::time::timeout(Duration::from_millis(10), connection.flush()).await;
    assert!(cancelled.is_err(), "so much is not sent to who does not read");
    connection.push(1, &get("k"));
    connection.flush().await.expect("sent");
    let mut replies = Vec::new();
    while connection.in_flight() > 0 {
        replies.extend(received(&mut connection).await.0);
    }
    assert_eq!(replies, ["0: written", "1: missing"]);
    server.join().expect("served");
}

#[tokio::test]
async fn what_came_before_the_end_is_handed_over() {
    let (address, server) = redis(|mut stream| {
        read_exactly(&mut stream, 3 * GET_K.len());
        stream.write_all(b"$1\r\na\r\n$1\r\nb\r\n$1\r").expect("taken");
    });
    let mut connection = connect(&address).await;
    (0..3).for_each(|tag| connection.push(tag, &get("k")));
    connection.flush().await.expect("sent");
    server.join().expect("served");
    let (mut replies, mut result) = received(&mut connection).await;
    while result.is_ok() {
        let (more, next) = received(&mut connection).await;
        replies.extend(more);
        result = next;
    }
    assert_eq!((replies.join(", ").as_str(), result), ("0: value a, 1: value b", Err("connection_lost")));
    assert_eq!(connection.in_flight(), 1, "what was asked and not answered");
    assert_eq!(received(&mut connection).await.1, Err("connection_lost"), "it stays so");
}

#[tokio::test]
async fn an_end_is_told_once_something_is_asked() {
    let (address, server) = redis(drop);
    let mut connection = connect(&address).await;
    server.join().expect("served");
    connection.push(0, &get("k"));
    let flushed = connection.flush().await.map_err(|e| e.code);
    assert!(matches!(flushed, Ok(()) | Err("connection_lost")));
    assert_eq!(received(&mut connection).await, (vec![], Err("connection_lost")));
    assert_eq!(connection.flush().await.map_err(|e| e.code), Err("connection_lost"));
}

#[tokio::test]
async fn more_replies_than_requests_break_it() {
    let (address, server) = redis(|mut stream| {
        read_exactly(&mut stream, GET_K.len());
        stream.write_all(b"$-1\r\n$-1\r\n").expect("taken");
    });
    let mut connection = connect(&address).await;
    connection.push(0, &get("k"));
    connection.flush().await.expect("sent");
    server.join().expect("served");
    assert_eq!(received(&mut connection).await, (vec!["0: missing".to_owned()], Err("protocol_error")));
    assert_eq!(received(&mut connection).await.1, Err("protocol_error"));
}

#[tokio::test]
async fn a_reply_without_end_breaks_it() {
    /// Takes nothing and hopes for more.
    struct Never;
    impl Codec for Never {
        fn encode(&mut self, out: &mut Vec<u8>, _: u64, _: &Request<'_>) {
            out.push(b'?');
        }
        fn decode(&mut self, _: &[u8], _: &mut dyn FnMut(u64, Reply<'_>)) -> Result<usize, String> {
            Ok(0)
        }
    }
    let (address, server) = server(|mut stream| {
        let block = vec![0; 1024 * 1024];
        while stream.write_all(&block).is_ok() {}
    });
    let mut connection = StreamConnection::connect(&address, Never, PATIENCE).await.expect("connected");
    connection.push(0, &get("k"));
    assert_eq!(received(&mut connection).await, (vec![], Err("protocol_error")));
    assert!(connection.incoming.len() < 2 * MAX_INCOMING_BYTES);
    drop(connection);
    server.join().expect("served");
}

#[tokio::test]
async fn gets_that_are_pushed_together_leave_as_one() {
    let (address, server) = server(|mut stream| {
        assert_eq!(read_exactly(&mut stream, 9), b"version\r\n");
        stream.write_all(b"VERSION 1.6.18\r\n").expect("taken");
        assert_eq!(read_exactly(&mut stream, 9 + 7), b"get a b\r\nget c\r\n");
        stream.write_all(b"VALUE b 0 1\r\nx\r\nEND\r\nEND\r\n").expect("taken");
    });
    let mut connection =
        StreamConnection::connect(&address, MemcachedCodec::new(false), PATIENCE).await.expect("connected");
    connection.push(0, &get("a"));
    connection.push(1, &get("b"));
    connection.flush().await.expect("sent");
    connection.push(2, &get("c"));
    // Sends what a flush was forgotten for, and never half a line.
    let mut replies = Vec::new();
    while connection.in_flight() > 0 {
        replies.extend(received(&mut connection).await.0);
    }
    assert_eq!(replies, ["0: missing", "1: value x", "2: missing"]);
    server.join().expect("served");
}

#[tokio::test]
async fn a_server_that_closes_after_an_answer_is_taken_at_its_word() {
    let (address, server) = server(|mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.extend(read_exactly(&mut stream, 1));
        }
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").expect("greeted");
        read_exactly(&mut stream, 10);
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
        stream.write_all(answer.as_bytes()).expect("taken");
        // It does not close: who waited for that would wait for long.
        stream.read_to_end(&mut Vec::new()).expect("closed by the client");
    });
    let codec = HttpCodec::new(&address, HttpApi::V1);
    let mut connection = StreamConnection::connect(&address, codec, PATIENCE).await.expect("connected");
    connection.push(0, &get("k"));
    connection.push(1, &get("k"));
    connection.flush().await.expect("sent");
    assert_eq!(received(&mut connection).await, (vec!["0: value x".to_owned()], Ok(1)));
    assert_eq!(received(&mut connection).await, (vec![], Err("connection_lost")));
    drop(connection);
    server.join().expect("served");
}

#[tokio::test]
async fn who_cannot_be_reached_or_does_not_want_us_is_told() {
    let refused = |address: Address, patience_ms| async move {
        let codec = RedisCodec::new(RedisOptions::default());
        let result = StreamConnection::connect(&address, codec, Duration::from_millis(patience_ms)).await;
        let Broken { code, cause } = result.map(|_| ()).expect_err("no connection");
        (code, cause.replace(address.as_str(), "HOST"))
    };
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let (code, cause) = refused(free.to_string().parse().expect("an address"), 1000).await;
    assert_eq!(code, "unreachable");
    assert!(cause.ends_with("check that the target runs and listens there"), "{cause}");

    let (address, _server) = server(|mut stream| _ = stream.read_to_end(&mut Vec::new()));
    let (code, cause) = refused(address, 50).await;
    assert_eq!((code, cause.as_str()), ("unreachable", "HOST: no answer to the greeting within 50 ms"));

    let (address, _server) = server(|mut stream| {
        read_exactly(&mut stream, 1);
        stream.write_all(b"-DENIED protected mode\r\n").expect("taken");
    });
    let (code, cause) = refused(address, 1000).await;
    assert_eq!((code, cause.as_str()), ("refused", "HOST: PING was refused: \"DENIED protected mode\""));

    let (address, _server) = server(drop);
    let (code, _) = refused(address, 1000).await;
    assert_eq!(code, "connection_lost");
}
