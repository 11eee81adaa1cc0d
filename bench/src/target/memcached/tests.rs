use super::*;
use crate::target::model::{
    Model, Said, batches, check, check_pipeline, check_wrong, decode, delete, encode, get, increment, put, put_if,
};
use proptest::prelude::*;

fn plain() -> MemcachedCodec {
    MemcachedCodec::new(false)
}

fn versioned() -> MemcachedCodec {
    MemcachedCodec::new(true)
}

#[test]
fn commands_are_lines_and_gets_share_theirs() {
    for (requests, bytes) in [
        (&[get("a")][..], "get a\r\n"),
        (&[get("a"), get("b"), get("a")], "get a b a\r\n"),
        (&[put("k", "a b")], "set k 0 0 3\r\na b\r\n"),
        (&[put("k", "")], "set k 0 0 0\r\n\r\n"),
        (&[put_if("k", "v", 17)], "cas k 0 0 1 17\r\nv\r\n"),
        (&[delete("k")], "delete k\r\n"),
        (&[increment("k")], "ma k N0 J1 v\r\n"),
        (&[get("a"), get("b"), put("k", "v"), get("c")], "get a b\r\nset k 0 0 1\r\nv\r\nget c\r\n"),
        (&[get("a"), delete("k"), get("b"), increment("n")], "get a\r\ndelete k\r\nget b\r\nma n N0 J1 v\r\n"),
    ] {
        assert_eq!(String::from_utf8(encode(&mut plain(), requests)).expect("text"), bytes);
        let versioned = encode(&mut versioned(), requests);
        assert_eq!(String::from_utf8(versioned).expect("text"), bytes.replace("get ", "gets "));
    }
    let many = vec![get("k"); 250];
    let line = |keys: usize| format!("get{}\r\n", " k".repeat(keys));
    let sent = String::from_utf8(encode(&mut plain(), &many)).expect("text");
    assert_eq!(sent, [line(100), line(100), line(50)].concat());
}

#[test]
fn keys_are_of_one_word() {
    for (key, is) in [("k", true), (&"k".repeat(250)[..], true), ("ключ", true)] {
        assert_eq!(is_key(key.as_bytes()), is);
    }
    for key in ["", " ", "a b", "a\r\nb", "a\0", "\u{7f}", &"k".repeat(251)] {
        assert!(!is_key(key.as_bytes()), "{key:?}");
    }
}

#[test]
fn replies_are_matched_by_order_and_key() {
    for (requests, bytes, expected) in [
        (&[get("a")][..], "VALUE a 0 3\r\nabc\r\nEND\r\n", &["0: value abc"][..]),
        (&[get("a")], "VALUE a 9 4\r\n\r\n\r\n\r\nEND\r\n", &["0: value \\r\\n\\r\\n"]),
        (&[get("a")], "END\r\n", &["0: missing"]),
        (&[get("a")], "VALUE a 0 1 17\r\nx\r\nEND\r\n", &["0: value x 0-17"]),
        (
            &[get("a"), get("b"), get("c"), get("d")],
            "VALUE b 0 1\r\nx\r\nVALUE d 0 1\r\ny\r\nEND\r\n",
            &["0: missing", "1: value x", "2: missing", "3: value y"],
        ),
        (&[get("a"), get("b"), get("c")], "VALUE a 0 1\r\nx\r\nEND\r\n", &["0: value x", "1: missing", "2: missing"]),
        (
            &[get("a"), get("b"), get("a")],
            "VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\nEND\r\n",
            &["0: value x", "1: missing", "2: value x"],
        ),
        // It was there for one of the two.
        (&[get("a"), get("a")], "VALUE a 0 1\r\nx\r\nEND\r\n", &["0: value x", "1: missing"]),
        (
            &[get("a"), put("a", "v"), get("a"), delete("a"), increment("n")],
            "END\r\nSTORED\r\nVALUE a 0 1\r\nv\r\nEND\r\nDELETED\r\nVA 2\r\n17\r\n",
            &["0: missing", "1: written", "2: value v", "3: written", "4: number 17"],
        ),
        (&[put("a", "v")], "SERVER_ERROR out of memory storing object\r\n", &["0: memcached_out_of_memory"]),
        (&[put("a", "v")], "SERVER_ERROR object too large for cache\r\n", &["0: memcached_too_large"]),
        (&[put("a", "v")], "SERVER_ERROR else\r\n", &["0: memcached_server_error"]),
        (&[put("a", "v")], "NOT_STORED\r\n", &["0: memcached_not_stored"]),
        (&[put_if("a", "v", 1)], "STORED\r\n", &["0: written"]),
        (&[put_if("a", "v", 1)], "EXISTS\r\n", &["0: conflict"]),
        (&[put_if("a", "v", 1)], "NOT_FOUND\r\n", &["0: missing"]),
        (&[delete("a")], "NOT_FOUND\r\n", &["0: missing"]),
        (&[increment("a")], "VA 1 t0 \r\n7\r\n", &["0: number 7"]),
        (&[increment("a")], "CLIENT_ERROR cannot increment\r\n", &["0: memcached_client_error"]),
        (&[increment("a")], "ERROR\r\n", &["0: memcached_error"]),
        (
            &[get("a"), get("b"), put("c", "v")],
            "VALUE a 0 1\r\nx\r\nSERVER_ERROR out of memory writing get response\r\nSTORED\r\n",
            &["0: value x", "1: memcached_out_of_memory", "2: written"],
        ),
    ] {
        check(plain, requests, bytes.as_bytes(), expected);
    }
}

#[test]
fn what_is_no_reply_to_the_command_is_told() {
    for (requests, bytes) in [
        (&[][..], "END\r\n"),
        (&[get("a")], "STORED\r\n"),
        (&[get("a")], "VALUE b 0 1\r\nx\r\n"),
        (&[get("a")], "VALUE a 0 1\r\nxyz"),
        (&[get("a")], "VALUE a 0 -1\r\n"),
        (&[get("a")], "VALUE a 0 67108865\r\n"),
        (&[get("a")], "VALUE a 0\r\n"),
        (&[get("a")], "VALUE a 0 1 x\r\nx\r\n"),
        (&[get("a")], "VALUE a 0 1\r\nx\r\nVALUE a 0 1\r\nx\r\n"),
        (&[get("a")], "END\r\nEND\r\n"),
        (&[put("a", "v")], "END\r\n"),
        (&[delete("a")], "STORED\r\n"),
        (&[increment("a")], "VA x\r\n"),
        (&[increment("a")], "VA 20\r\n18446744073709551615\r\n"),
        (&[increment("a")], "HD\r\n"),
    ] {
        check_wrong(plain, requests, bytes.as_bytes());
    }
}

#[test]
fn the_greeting_asks_who_is_there() {
    let mut codec = plain();
    assert_eq!(codec.greeting().as_deref(), Some(&b"version\r\n"[..]));
    assert_eq!(codec.greeted(b"VERSION 1.6"), Ok(None));
    assert_eq!(codec.greeted(b"VERSION 1.6.18\r\n"), Ok(Some(16)));
    for bytes in ["ERROR\r\n", "CLIENT_ERROR unauthenticated\r\n", "-ERR unknown command\r\n"] {
        assert!(codec.greeted(bytes.as_bytes()).is_err());
    }
}

/// Memcached in a few lines: carries out what stands in `bytes`.
fn serve(store: &mut Model, mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some((line, used)) = text::line(bytes).expect("short") {
        bytes = &bytes[used..];
        let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
        let key = words[1];
        let said = match words[0] {
            command @ (b"get" | b"gets") => {
                for key in &words[1..] {
                    if let Said::Value(value, version) = store.apply(&Request::Get { key }) {
                        let cas = if command == b"gets" { format!(" {}", version.lsn) } else { String::new() };
                        out.extend_from_slice(&[b"VALUE ", *key].concat());
                        out.extend_from_slice(format!(" 0 {}{cas}\r\n", value.len()).as_bytes());
                        out.extend_from_slice(&[&value[..], b"\r\n"].concat());
                    }
                }
                out.extend_from_slice(b"END\r\n");
                continue;
            }
            b"set" | b"cas" => {
                let number = |word: &[u8]| decimal(word).expect("a number");
                let (value, used) = text::block(bytes, 0, number(words[4]) as usize).expect("ended").expect("whole");
                bytes = &bytes[used..];
                let only_if = words.get(5).map(|cas| Version { history: HistoryId(0), lsn: Lsn(number(cas)) });
                store.apply(&Request::Put { key, value, only_if, operation_id: None })
            }
            b"delete" => match store.apply(&Request::Delete { key, operation_id: None }) {
                Said::Written(_) => {
                    out.extend_from_slice(b"DELETED\r\n");
                    continue;
                }
                other => other,
            },
            b"ma" => store.apply(&Request::Increment { key }),
            other => panic!("{}", shown(other)),
        };
        let answer = match said {
            Said::Written(_) => "STORED\r\n".to_owned(),
            Said::Missing => "NOT_FOUND\r\n".to_owned(),
            Said::Conflict => "EXISTS\r\n".to_owned(),
            Said::Number(n) => format!("VA {}\r\n{n}\r\n", n.to_string().len()),
            Said::Value(..) => unreachable!("values are told above"),
        };
        out.extend_from_slice(answer.as_bytes());
    }
    assert!(bytes.is_empty(), "{}", shown(bytes));
    out
}

proptest! {
    #[test]
    fn any_pipeline_is_answered_as_the_store_would(batches in batches(true, true), piece in 1usize..100) {
        check_pipeline(&mut plain(), &batches, (false, false), piece, serve);
        check_pipeline(&mut versioned(), &batches, (true, false), piece, serve);
    }

    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "((VALUE [ab] 0 [0-9]{1,2}|END|STORED|NOT_FOUND|VA 1|ERROR|x|1)(\r\n)?){0,20}",
    ) {
        for bytes in [&bytes[..], text.as_bytes()] {
            let mut codec = plain();
            encode(&mut codec, &[get("a"), get("b"), put("k", "v"), increment("n"), delete("k"), get("a")]);
            let _ = decode(&mut codec, bytes.chunks(3));
            // What is pushed after that is still no panic.
            let mut out = Vec::new();
            (0..150).for_each(|tag| codec.encode(&mut out, tag, &get("a")));
            let _ = decode(&mut codec, bytes.chunks(5));
            codec.encode(&mut out, 0, &put("a", "v"));
            let _ = plain().greeted(bytes);
        }
    }
}

/// Its bytes are moved to the front now and then.
#[test]
fn the_keys_of_gets_do_not_pile_up() {
    let mut codec = plain();
    let mut out = Vec::new();
    codec.encode(&mut out, 0, &get("first"));
    for _ in 0..10_000 {
        codec.encode(&mut out, 1, &get("another-key"));
        codec.end_batch(&mut out);
        let answered = decode(&mut codec, [&b"END\r\n"[..]]).expect("good");
        assert!(!answered.is_empty());
    }
    assert!(codec.asked.bytes.capacity() < 100_000);
}
