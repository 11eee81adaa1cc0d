use super::*;
use crate::target::model::{
    Model, Said, batches, check, check_pipeline, check_wrong, decode, delete, encode, get, put, put_if,
};
use kv_client::proto::ids::{HistoryId, Lsn};
use proptest::prelude::*;

fn address() -> Address {
    "h:5000".parse().expect("an address")
}

fn documented() -> HttpCodec {
    HttpCodec::new(&address(), HttpApi::Documented)
}

fn v1() -> HttpCodec {
    HttpCodec::new(&address(), HttpApi::V1)
}

#[test]
fn requests_of_the_documented_api() {
    for (request, bytes) in [
        (get("k"), "GET /get?key=k HTTP/1.1\r\nHost: h:5000\r\n\r\n"),
        (get("a b+c/d&é"), "GET /get?key=a%20b%2Bc%2Fd%26%C3%A9 HTTP/1.1\r\nHost: h:5000\r\n\r\n"),
        (delete("k"), "DELETE /delete?key=k HTTP/1.1\r\nHost: h:5000\r\n\r\n"),
        (
            put("k", "a\"b"),
            "POST /put HTTP/1.1\r\nHost: h:5000\r\nContent-Type: application/json\r\nContent-Length: 26\r\n\r\n\
             {\"key\":\"k\",\"value\":\"a\\\"b\"}",
        ),
    ] {
        assert_eq!(String::from_utf8(encode(&mut documented(), &[request])).expect("text"), bytes);
    }
}

#[test]
fn requests_of_v1() {
    for (request, bytes) in [
        (get("k"), "GET /v1/kv/k HTTP/1.1\r\nHost: h:5000\r\n\r\n"),
        (get("a b+c/d"), "GET /v1/kv/a%20b%2Bc%2Fd HTTP/1.1\r\nHost: h:5000\r\n\r\n"),
        (delete("k"), "DELETE /v1/kv/k HTTP/1.1\r\nHost: h:5000\r\n\r\n"),
        (put("k", "a\"b"), "PUT /v1/kv/k HTTP/1.1\r\nHost: h:5000\r\nContent-Length: 3\r\n\r\na\"b"),
        (put("k", ""), "PUT /v1/kv/k HTTP/1.1\r\nHost: h:5000\r\nContent-Length: 0\r\n\r\n"),
        (
            put_if("k", "v", 17),
            "PUT /v1/kv/k HTTP/1.1\r\nHost: h:5000\r\nIf-Match: \"0-17\"\r\nContent-Length: 1\r\n\r\nv",
        ),
    ] {
        assert_eq!(String::from_utf8(encode(&mut v1(), &[request])).expect("text"), bytes);
    }
}

/// An answer as servers write it.
fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

const NOT_FOUND: &str = "{\"status\":\"Key not found\"}";

#[test]
fn answers_of_the_documented_api() {
    for (requests, bytes, expected) in [
        (&[get("k")][..], answer("200 OK", "", "{\"key\":\"k\",\"value\":\"v\"}"), &["0: value v"][..]),
        (&[get("k")], answer("200 OK", "ETag: \"0-1\"\r\n", "{\"key\":\"k\",\"value\":4}"), &["0: value 4"]),
        (&[get("k")], answer("404 Not Found", "", NOT_FOUND), &["0: missing"]),
        (&[delete("k")], answer("404 Not Found", "", NOT_FOUND), &["0: missing"]),
        (&[put("k", "v")], answer("404 Not Found", "", NOT_FOUND), &["0: http_404"]),
        (&[get("k")], answer("404 Not Found", "", "<html>"), &["0: http_404"]),
        (&[get("k")], answer("404 Not Found", "", "{\"code\":\"unknown_route\"}"), &["0: unknown_route"]),
        (
            &[put("k", "v"), get("k"), delete("k")],
            [
                answer("200 OK", "", "{\"status\":\"Successful\"}"),
                answer("200 OK", "", "{\"key\":\"k\",\"value\":\"v\\n\"}"),
                answer("200 OK", "", "{\"status\":\"Delete successful\"}"),
            ]
            .concat(),
            &["0: written", "1: value v\\n", "2: written"],
        ),
    ] {
        check(documented, requests, bytes.as_bytes(), expected);
    }
}

#[test]
fn answers_of_v1() {
    const CHUNKED: &str =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: \"0-9\"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n";
    for (requests, bytes, expected) in [
        (&[get("k")][..], answer("200 OK", "ETag: \"3-17\"\r\n", "v"), &["0: value v 3-17"][..]),
        (&[get("k")], answer("200 OK", "etag: \"other\"\r\n", ""), &["0: value "]),
        (&[get("k"), get("k")], [CHUNKED, CHUNKED].concat(), &["0: value abc 0-9", "1: value abc 0-9"]),
        (&[get("k")], answer("404 Not Found", "", "{\"code\":\"key_not_found\"}"), &["0: missing"]),
        (&[delete("k")], answer("404 Not Found", "", ""), &["0: missing"]),
        (
            &[put("k", "v"), delete("k")],
            "HTTP/1.1 204 No Content\r\nETag: \"0-1\"\r\n\r\nHTTP/1.1 204 No Content\r\nETag: \"0-2\"\r\n\r\n"
                .to_owned(),
            &["0: written 0-1", "1: written 0-2"],
        ),
        (&[put_if("k", "v", 1)], answer("412 No", "", "{\"code\":\"condition_failed\"}"), &["0: conflict"]),
        (&[put("k", "v")], answer("412 No", "", "{\"code\":\"condition_failed\"}"), &["0: condition_failed"]),
        (&[put_if("k", "v", 1)], answer("404 No", "", ""), &["0: missing"]),
    ] {
        check(v1, requests, bytes.as_bytes(), expected);
    }
}

#[test]
fn errors_say_what_became_of_the_request() {
    const UNKNOWN: &str = "{\"code\":\"deadline_exceeded\",\"outcome\":\"unknown\"}";
    const NOT_APPLIED: &str = "{\"code\":\"no_leader\",\"outcome\":\"not_applied\"}";
    for (status, headers, body, of_write, of_read) in [
        ("504 Late", "", UNKNOWN, "0: deadline_exceeded, unknown", "0: deadline_exceeded"),
        ("503 No", "", NOT_APPLIED, "0: no_leader", "0: no_leader"),
        ("503 No", "", "busy", "0: http_503, unknown", "0: http_503"),
        ("503 No", "Retry-After: 1\r\n", "busy", "0: http_503", "0: http_503"),
        ("500 No", "Retry-After: 1\r\n", "", "0: http_500, unknown", "0: http_500"),
        ("502 No", "", "{}", "0: http_502, unknown", "0: http_502"),
        ("429 Much", "", "", "0: http_429", "0: http_429"),
        ("413 Large", "", "{\"code\":\"value_too_large\"}", "0: value_too_large", "0: value_too_large"),
        ("301 Elsewhere", "", "", "0: http_301", "0: http_301"),
    ] {
        let bytes = answer(status, headers, body);
        for make in [documented, v1] {
            check(make, &[put("k", "v")], bytes.as_bytes(), &[of_write]);
            check(make, &[delete("k")], bytes.as_bytes(), &[of_write]);
            check(make, &[get("k")], bytes.as_bytes(), &[of_read]);
        }
    }
}

#[test]
fn what_is_no_answer_to_the_request_is_told() {
    let ok = answer("200 OK", "", "");
    check_wrong(v1, &[], ok.as_bytes());
    check_wrong(v1, &[get("k")], [&ok[..], &ok].concat().as_bytes());
    check_wrong(documented, &[get("k")], ok.as_bytes());
    check_wrong(documented, &[get("k")], answer("200 OK", "", "{\"key\":\"k\"}").as_bytes());
    check_wrong(documented, &[get("k")], b"$-1\r\n");
}

#[test]
fn behind_the_last_answer_there_is_none() {
    let mut codec = v1();
    encode(&mut codec, &[get("a"), get("b")]);
    let bytes = [answer("200 OK", "Connection: close\r\n", "x"), answer("200 OK", "", "y")].concat();
    assert_eq!(decode(&mut codec, [bytes.as_bytes()]), Ok(vec!["0: value x".to_owned()]));
    assert!(codec.is_closing());
}

/// The router in a few lines: carries out what stands in `bytes`, of either API. Values come in chunks now and then.
fn serve(store: &mut Model, mut bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 16];
        let mut request = httparse::Request::new(&mut headers);
        let used = request.parse(bytes).expect("HTTP").unwrap();
        let header = |name: &str| {
            let header = request.headers.iter().find(|h| h.name == name)?;
            Some(std::str::from_utf8(header.value).expect("text"))
        };
        let length = header("Content-Length").map_or(0, |length| length.parse().expect("a length"));
        let body = &bytes[used..used + length];
        bytes = &bytes[used + length..];
        let (method, path) = (request.method.expect("complete"), request.path.expect("complete"));
        let raw = path.strip_prefix("/v1/kv/");
        let key = percent_decoded(raw.or(path.split_once("?key=").map(|(_, key)| key)).unwrap_or_default());
        let only_if = header("If-Match").map(|tag| tag.trim_matches('"').parse().expect("a version"));
        let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let text = |name: &str| json.as_ref().and_then(|j| j[name].as_str()).expect("a string").as_bytes();
        let said = match (method, raw) {
            ("GET", _) => store.apply(&Request::Get { key: &key }),
            ("DELETE", _) => store.apply(&Request::Delete { key: &key, operation_id: None }),
            ("PUT", Some(_)) => store.apply(&Request::Put { key: &key, value: body, only_if, operation_id: None }),
            ("POST", None) => {
                let (key, value) = (text("key"), text("value"));
                store.apply(&Request::Put { key, value, only_if, operation_id: None })
            }
            _ => panic!("{method} {path}"),
        };
        match (said, raw) {
            (Said::Value(value, version), Some(_)) if version.lsn.0 % 2 == 0 => {
                out.extend_from_slice(
                    format!("HTTP/1.1 200 OK\r\nETag: \"{version}\"\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes(),
                );
                for chunk in value.chunks(7) {
                    out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                    out.extend_from_slice(&[chunk, b"\r\n"].concat());
                }
                out.extend_from_slice(b"0\r\n\r\n");
            }
            (Said::Value(value, version), Some(_)) => {
                let head = format!("HTTP/1.1 200 OK\r\nETag: \"{version}\"\r\nContent-Length: {}\r\n\r\n", value.len());
                out.extend_from_slice(&[head.as_bytes(), &value].concat());
            }
            (Said::Value(value, _), None) => {
                let value = String::from_utf8(value).expect("text");
                let body = serde_json::json!({"key": "k", "value": value}).to_string();
                out.extend_from_slice(answer("200 OK", "", &body).as_bytes());
            }
            (Said::Written(version), Some(_)) => {
                out.extend_from_slice(format!("HTTP/1.1 204 No Content\r\nETag: \"{version}\"\r\n\r\n").as_bytes());
            }
            (Said::Written(_), None) => out.extend_from_slice(answer("200 OK", "", "{\"status\":\"Done\"}").as_bytes()),
            (Said::Missing, _) => out.extend_from_slice(answer("404 Not Found", "", NOT_FOUND).as_bytes()),
            (Said::Conflict, _) => out.extend_from_slice(answer("412 Precondition Failed", "", "{}").as_bytes()),
            (Said::Number(_), _) => unreachable!("there are no counters"),
        }
    }
    out
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        out.push(u8::from_str_radix(&part[..2], 16).expect("two digits"));
        out.extend_from_slice(&part.as_bytes()[2..]);
    }
    out
}

proptest! {
    #[test]
    fn any_pipeline_is_answered_as_the_store_would(
        conditional in batches(true, false), plain in batches(false, false), piece in 1usize..100,
    ) {
        check_pipeline(&mut v1(), &conditional, (true, true), piece, serve);
        check_pipeline(&mut documented(), &plain, (false, false), piece, serve);
    }

    #[test]
    fn garbage_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "((HTTP/1.1 (200|204|404|503|100) \r\n)((Content-Length: [0-9]{1,3}|ETag: \"1-1\"|Transfer-Encoding: chunked)\r\n){0,2}(\r\n)?[0-9a-f\r\n{}\"]{0,20}){0,5}",
    ) {
        for bytes in [&bytes[..], text.as_bytes()] {
            for mut codec in [v1(), documented()] {
                encode(&mut codec, &[get("a"), put("k", "v"), delete("k"), get("a")]);
                let _ = decode(&mut codec, bytes.chunks(3));
            }
        }
    }

    #[test]
    fn every_key_is_written_so_that_it_can_be_read(key in prop::collection::vec(any::<u8>(), 0..40)) {
        let mut out = Vec::new();
        append_percent_encoded(&mut out, &key);
        prop_assert_eq!(percent_decoded(std::str::from_utf8(&out).unwrap()), key);
    }

    #[test]
    fn versions_are_read_as_they_are_written(history: u32, lsn: u64) {
        let version = Version { history: HistoryId(history), lsn: Lsn(lsn) };
        let bytes = answer("200 OK", &format!("ETag: \"{version}\"\r\n"), "");
        let mut codec = v1();
        encode(&mut codec, &[get("k")]);
        prop_assert_eq!(decode(&mut codec, [bytes.as_bytes()]), Ok(vec![format!("0: value  {version}")]));
    }
}
