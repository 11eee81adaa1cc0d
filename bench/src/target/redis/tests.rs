use super::*;
use crate::target::model::{
    Asked, Model, Said, batches, check, check_pipeline, check_wrong, decode, delete, encode, get, increment, put,
};
use proptest::prelude::*;

fn plain() -> RedisCodec {
    RedisCodec::new(RedisOptions::default())
}

fn waiting(replicas: u32, per: WaitPer) -> RedisCodec {
    let wait = Some(Wait { replicas, timeout: Duration::from_millis(1500), per });
    RedisCodec::new(RedisOptions { wait, ..RedisOptions::default() })
}

fn sent(mut codec: RedisCodec, requests: &[Request<'_>]) -> String {
    String::from_utf8(encode(&mut codec, requests)).expect("text").replace("\r\n", " ")
}

#[test]
fn commands_are_arrays_of_bulk_strings() {
    for (request, bytes) in [
        (get("k"), "*2 $3 GET $1 k "),
        (put("k", "some value"), "*3 $3 SET $1 k $10 some value "),
        (put("k", ""), "*3 $3 SET $1 k $0  "),
        (delete("k"), "*2 $3 DEL $1 k "),
        (increment("k"), "*2 $4 INCR $1 k "),
    ] {
        assert_eq!(sent(plain(), &[request]), bytes);
    }
}

#[test]
fn a_wait_follows_each_write_or_each_batch_with_one() {
    const SET: &str = "*3 $3 SET $1 k $1 v ";
    const GET: &str = "*2 $3 GET $1 k ";
    const WAIT: &str = "*3 $4 WAIT $1 2 $4 1500 ";
    let batch = [put("k", "v"), get("k"), put("k", "v")];
    assert_eq!(sent(waiting(2, WaitPer::Write), &batch), [SET, WAIT, GET, SET, WAIT].concat());
    assert_eq!(sent(waiting(2, WaitPer::Batch), &batch), [SET, GET, SET, WAIT].concat());
    assert_eq!(sent(waiting(2, WaitPer::Batch), &[get("k")]), GET);
    let mut codec = waiting(2, WaitPer::Batch);
    encode(&mut codec, &batch);
    assert_eq!(sent(codec, &[get("k")]), GET, "what one batch waited for, the next does not");
}

#[test]
fn the_greeting_lets_in_and_selects() {
    let options = |user: Option<&str>, password: Option<&str>, db| RedisOptions {
        user: user.map(str::to_owned),
        password: password.map(str::to_owned),
        db,
        wait: None,
    };
    for (options, bytes, good) in [
        (options(None, None, 0), "*1 $4 PING ", "+PONG "),
        (options(None, Some("pw"), 0), "*2 $4 AUTH $2 pw *1 $4 PING ", "+OK +PONG "),
        (
            options(Some("ada"), Some("pw"), 12),
            "*3 $4 AUTH $3 ada $2 pw *2 $6 SELECT $2 12 *1 $4 PING ",
            "+OK +OK +PONG ",
        ),
    ] {
        let mut codec = RedisCodec::new(options);
        let greeting = String::from_utf8(codec.greeting().expect("one")).expect("text");
        assert_eq!(greeting.replace("\r\n", " "), bytes);
        let good = good.replace(' ', "\r\n");
        for cut in 0..good.len() {
            assert_eq!(codec.greeted(&good.as_bytes()[..cut]), Ok(None));
        }
        assert_eq!(codec.greeted(good.as_bytes()), Ok(Some(good.len())));
    }
    let mut codec = RedisCodec::new(options(None, Some("pw"), 3));
    for (answer, cause) in [
        ("-WRONGPASS no\r\n", "AUTH was refused: \"WRONGPASS no\"; check the user and the password of the target"),
        ("+OK\r\n-ERR range\r\n", "SELECT was refused: \"ERR range\"; check the number of the database in the target"),
        ("+OK\r\n+OK\r\n-LOADING soon\r\n", "PING was refused: \"LOADING soon\""),
        ("HTTP/1.1 400 Bad Request\r\n", "\"HTTP/1.1 400 Bad Request\\r\\n\" is no reply of Redis; is this Redis?"),
        (":1\r\n", "AUTH was answered with :1; is this Redis?"),
    ] {
        assert_eq!(codec.greeted(answer.as_bytes()), Err(cause.to_owned()));
    }
    let cause = plain().greeted(b"-NOAUTH Authentication required.\r\n");
    assert_eq!(cause, Err("it wants a password: write the target as redis://:PASSWORD@HOST:PORT".to_owned()));
}

#[test]
fn replies_are_matched_in_order() {
    for (requests, bytes, expected) in [
        (&[get("k")][..], "$3\r\nabc\r\n", &["0: value abc"][..]),
        (&[get("k")], "$0\r\n\r\n", &["0: value "]),
        (&[get("k")], "$5\r\na\r\nb\n\r\n", &["0: value a\\r\\nb\\n"]),
        (&[get("k")], "$-1\r\n", &["0: missing"]),
        (&[put("k", "v")], "+OK\r\n", &["0: written"]),
        (&[delete("k")], ":1\r\n", &["0: written"]),
        (&[delete("k")], ":0\r\n", &["0: missing"]),
        (&[increment("k")], ":-7\r\n", &["0: number -7"]),
        (
            &[put("k", "v"), get("k"), get("l"), increment("n")],
            "+OK\r\n$1\r\nv\r\n$-1\r\n:9223372036854775807\r\n",
            &["0: written", "1: value v", "2: missing", "3: number 9223372036854775807"],
        ),
        (&[get("k")], "-WRONGTYPE Operation against\r\n", &["0: redis_wrongtype"]),
        (&[put("k", "v")], "-OOM command not allowed\r\n", &["0: redis_oom"]),
        (&[put("k", "v")], "-READONLY You can't\r\n", &["0: redis_readonly"]),
        (&[increment("k"), get("k")], "-ERR value is not\r\n$1\r\nx\r\n", &["0: redis_err", "1: value x"]),
        (&[put("k", "v")], "-\r\n", &["0: redis_error"]),
    ] {
        check(plain, requests, bytes.as_bytes(), expected);
    }
}

#[test]
fn a_write_is_done_when_its_wait_says_so() {
    use WaitPer::{Batch, Write};
    for (per, requests, bytes, expected) in [
        (Write, &[put("k", "v")][..], "+OK\r\n:2\r\n", &["0: written"][..]),
        (Write, &[put("k", "v")], "+OK\r\n:3\r\n", &["0: written"]),
        (Write, &[put("k", "v")], "+OK\r\n:1\r\n", &["0: not_replicated, unknown"]),
        (Write, &[put("k", "v")], "+OK\r\n-NOPERM no\r\n", &["0: redis_noperm, unknown"]),
        (Write, &[put("k", "v")], "-OOM no\r\n:0\r\n", &["0: redis_oom"]),
        (
            Write,
            &[increment("n"), get("n"), delete("k")],
            ":5\r\n:2\r\n$1\r\n5\r\n:0\r\n:0\r\n",
            &["0: number 5", "1: value 5", "2: not_replicated, unknown"],
        ),
        (
            Batch,
            &[put("k", "v"), get("k"), put("k", "v"), delete("l")],
            "+OK\r\n$1\r\nv\r\n-OOM no\r\n:0\r\n:2\r\n",
            &["1: value v", "2: redis_oom", "0: written", "3: missing"],
        ),
        (
            Batch,
            &[put("k", "v"), increment("n")],
            "+OK\r\n:1\r\n:0\r\n",
            &["0: not_replicated, unknown", "1: not_replicated, unknown"],
        ),
    ] {
        check(|| waiting(2, per), requests, bytes.as_bytes(), expected);
    }
}

#[test]
fn what_is_no_reply_to_the_command_is_told() {
    for (requests, bytes) in [
        (&[][..], "+OK\r\n"),
        (&[get("k")], "+OK\r\n"),
        (&[get("k")], ":1\r\n"),
        (&[get("k")], "*1\r\n$1\r\nk\r\n"),
        (&[get("k")], "_\r\n"),
        (&[get("k")], "$-2\r\n"),
        (&[get("k")], "$67108865\r\n"),
        (&[get("k")], "$99999999999999999999\r\n"),
        (&[get("k")], "$1\r\nabc"),
        (&[get("k")], "\r\n"),
        (&[put("k", "v")], "+QUEUED\r\n"),
        (&[put("k", "v")], "$-1\r\n"),
        (&[increment("k")], ":x\r\n"),
        (&[increment("k")], ":9223372036854775808\r\n"),
        (&[delete("k")], "+OK\r\n"),
    ] {
        check_wrong(plain, requests, bytes.as_bytes());
    }
}

/// Redis in a few lines: carries out what stands in `bytes`.
fn serve(store: &mut Model, mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let number = |bytes: &mut &[u8], mark: u8| {
        let (line, used) = text::line(bytes).expect("short").expect("complete");
        assert_eq!(line[0], mark);
        *bytes = &bytes[used..];
        text::length(&line[1..]).expect("a number")
    };
    while !bytes.is_empty() {
        let parts: Vec<Vec<u8>> = (0..number(&mut bytes, b'*'))
            .map(|_| {
                let length = number(&mut bytes, b'$');
                let (part, used) = text::block(bytes, 0, length).expect("ended").expect("complete");
                bytes = &bytes[used..];
                part.to_vec()
            })
            .collect();
        let key = parts[1].as_slice();
        let request = match parts[0].as_slice() {
            b"GET" => Request::Get { key },
            b"SET" => Request::Put { key, value: &parts[2], only_if: None, operation_id: None },
            b"DEL" => Request::Delete { key, operation_id: None },
            b"INCR" => Request::Increment { key },
            b"WAIT" => {
                out.extend_from_slice(b":1\r\n");
                continue;
            }
            other => panic!("{}", shown(other)),
        };
        match (request, store.apply(&request)) {
            (_, Said::Value(value, _)) => append_bulk(&mut out, &value),
            (Request::Delete { .. }, Said::Missing) => out.extend_from_slice(b":0\r\n"),
            (Request::Delete { .. }, _) => out.extend_from_slice(b":1\r\n"),
            (_, Said::Missing) => out.extend_from_slice(b"$-1\r\n"),
            (_, Said::Number(n)) => out.extend_from_slice(format!(":{n}\r\n").as_bytes()),
            (_, Said::Written(_)) => out.extend_from_slice(b"+OK\r\n"),
            (_, Said::Conflict) => unreachable!("there are no conditions"),
        }
    }
    out
}

proptest! {
    #[test]
    fn any_pipeline_is_answered_as_the_store_would(batches in batches(false, true), piece in 1usize..100) {
        check_pipeline(&mut plain(), &batches, (false, false), piece, serve);
        check_pipeline(&mut waiting(1, WaitPer::Write), &batches, (false, false), piece, serve);
    }

    /// Those of writes come later than those of reads then, but with the same tags.
    #[test]
    fn with_a_wait_per_batch_each_is_still_answered(batch in batches(false, true)) {
        let asked: Vec<Asked> = batch.into_iter().flatten().collect();
        let requests: Vec<_> = asked.iter().map(Asked::request).collect();
        let replies = |mut codec: RedisCodec| {
            let bytes = serve(&mut Model::default(), &encode(&mut codec, &requests));
            let mut replies = decode(&mut codec, [&bytes[..]]).expect("good");
            replies.sort();
            replies
        };
        prop_assert_eq!(replies(waiting(1, WaitPer::Batch)), replies(plain()));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[$*:+\\-0-9OK\r\n ]{0,60}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            let mut codec = waiting(1, WaitPer::Write);
            encode(&mut codec, &[get("k"), put("k", "v"), increment("n"), delete("k")]);
            let _ = decode(&mut codec, bytes.chunks(3));
            let _ = plain().greeted(bytes);
        }
    }
}
