use super::*;

fn parse(text: &str) -> Result<Target, TargetError> {
    text.parse()
}

#[test]
fn targets_are_read_and_shown() {
    for (text, shown) in [
        ("127.0.0.1:5001", "kv://127.0.0.1:5001"),
        ("kv://127.0.0.1:5001/", "kv://127.0.0.1:5001"),
        ("kv://node-1", "kv://node-1:5001"),
        ("kv+one://[::1]", "kv+one://[::1]:5001"),
        ("KV+ONE://a:1", "kv+one://a:1"),
        ("http://localhost", "http://localhost:5000"),
        ("http://localhost:80/", "http://localhost:80"),
        ("http://localhost:80/v1", "http://localhost:80/v1"),
        ("http://localhost:80/v1/kv/", "http://localhost:80/v1"),
        ("redis://h", "redis://h:6379"),
        ("redis://[::1]:1/3", "redis://[::1]:1/3"),
        ("redis://h/?wait=1", "redis://h:6379?wait=1&wait-timeout=1s&wait-per=write"),
        (
            "redis://h:7/2?wait-per=batch&wait=2&wait-timeout=1500ms",
            "redis://h:7/2?wait=2&wait-timeout=1s500ms&wait-per=batch",
        ),
        ("redis://:hunter2@h", "redis://:***@h:6379"),
        ("redis://ada:hunter2@h:1/1", "redis://ada:***@h:1/1"),
        ("memcached://h", "memcached://h:11211"),
    ] {
        let target = parse(text).expect(text);
        assert_eq!(target.to_string(), shown);
        assert!(!format!("{target:?}").contains("hunter2"), "{target:?}");
    }
}

#[test]
fn what_is_shown_is_read_as_the_same() {
    for text in ["kv://a:1", "kv+one://a:1", "http://a:1/v1", "redis://a:1/2?wait=1&wait-timeout=1s&wait-per=batch"] {
        let target = parse(text).expect(text);
        assert_eq!(parse(&target.to_string()), Ok(target));
    }
}

#[test]
fn passwords_are_decoded() {
    let Ok(Target::Redis { options, .. }) = parse("redis://a%40b:p%2Fw%3a@h") else { panic!("no redis") };
    assert_eq!((options.user.as_deref(), options.password.as_deref()), (Some("a@b"), Some("p/w:")));
    let Ok(Target::Redis { options, .. }) = parse("redis://:p@w@h") else { panic!("no redis") };
    assert_eq!((options.user, options.password.as_deref()), (None, Some("p@w")));
}

#[test]
fn what_is_no_target_is_told_with_its_cure() {
    for (text, error) in [
        (
            "https://h:1",
            "https:// needs TLS, which kvbench does not speak; name a port without it, as http://HOST:PORT",
        ),
        (
            "rediss://h",
            "rediss:// needs TLS, which kvbench does not speak; name a port without it, as redis://HOST:PORT",
        ),
        ("etcd://h:1", "there is no target etcd://, but kv://, kv+one://, http://, redis:// and memcached://"),
        ("", "\"\" names no port; write HOST:PORT, or a URL as kv://HOST"),
        ("localhost", "\"localhost\" names no port; write HOST:PORT, or a URL as kv://HOST"),
        ("http://h:", "\"h:\" names no port; write HOST:PORT, or a URL as kv://HOST"),
        ("http://h:0", "\"0\" is no port; ports are numbers from 1 to 65535"),
        ("http://h:65536", "\"65536\" is no port; ports are numbers from 1 to 65535"),
        ("http://h:+1", "\"+1\" is no port; ports are numbers from 1 to 65535"),
        (
            "kv://",
            "\"\" is neither the name of a host nor an IP address; IPv6 addresses are written in brackets, as [::1]",
        ),
        (
            "kv://::1:5",
            "\"::1:5\" is neither the name of a host nor an IP address; IPv6 addresses are written in brackets, as [::1]",
        ),
        (
            "kv://[::1]5",
            "\"[::1]5\" is neither the name of a host nor an IP address; IPv6 addresses are written in brackets, as [::1]",
        ),
        (
            "kv://[h]:5",
            "\"[h]\" is neither the name of a host nor an IP address; IPv6 addresses are written in brackets, as [::1]",
        ),
        (
            "http://a b:1",
            "\"a b\" is neither the name of a host nor an IP address; IPv6 addresses are written in brackets, as [::1]",
        ),
        ("http://u:p@h:1", "http:// takes neither user nor password; only redis:// does"),
        ("u:p@h:1", "kv:// takes neither user nor password; only redis:// does"),
        ("kv://h/x", "kv:// has no path \"/x\"; leave it out"),
        ("kv://h?x=1", "kv:// has no parameter \"x\"; leave it out"),
        (
            "http://h/v2",
            "http:// has no path \"/v2\"; http://HOST:PORT is the API of /put, /get and /delete, http://HOST:PORT/v1 that of /v1/kv",
        ),
        ("http://h/v1?x", "http:// has no parameter \"x\"; leave it out"),
        ("memcached://h/0", "memcached:// has no path \"/0\"; leave it out"),
        ("redis://h/x", "redis:// has no path \"/x\"; the path is the number of the database, as /0"),
        ("redis://h/+1", "redis:// has no path \"/+1\"; the path is the number of the database, as /0"),
        ("redis://h#1", "a target has no fragment; leave out the # and what follows it"),
        ("redis://h?waits=1", "redis:// has no parameter \"waits\"; there are wait, wait-timeout and wait-per"),
        (
            "redis://h?wait=0",
            "wait=0 is not understood; give the number of replicas that must have a write, 1 or more, or leave it out",
        ),
        ("redis://h?wait=1&wait=2", "the parameter wait is given twice; leave one of them out"),
        (
            "redis://h?wait=1&wait-timeout=0s",
            "wait-timeout=0s is not understood; give a time of 1ms or more, as 500ms or 1s",
        ),
        ("redis://h?wait=1&wait-per=x", "wait-per=x is not understood; give write or batch"),
        (
            "redis://h?wait-per=batch",
            "wait-per says how to wait for replicas, but not for how many; add wait=1, or leave it out",
        ),
    ] {
        assert_eq!(parse(text).map_err(|e| e.to_string()), Err(error.to_owned()), "{text}");
    }
}

#[test]
fn no_error_tells_a_password() {
    for text in [
        "redis://:hun/ter2@h",
        "redis://:hunter2?@h",
        "redis://:hunter2#@h",
        "redis://:hunter2%@h",
        "redis://:hunter2%ff@h",
        "redis://hunter2@h",
        "redis://:hunter2@h:0",
        "redis://:hunter2@",
        "rediss://:hunter2@h",
        "redi://:hunter2@h",
        "http://:hunter2@h",
        ":hunter2@h",
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(!error.contains("hun") && !error.contains("ter2"), "{text}: {error}");
    }
}

#[test]
fn what_targets_offer() {
    for (text, offers, pipeline, name) in [
        ("kv://h", kv::OFFERS, 16, "kv"),
        ("kv+one://h", kv::OFFERS, 16, "kv+one"),
        ("redis://h", redis::OFFERS, 16, "redis"),
        ("memcached://h", memcached::OFFERS, 16, "memcached"),
        ("http://h", HttpApi::Documented.offers(), 1, "http"),
        ("http://h/v1", HttpApi::V1.offers(), 1, "http"),
    ] {
        let target = parse(text).expect(text);
        assert_eq!((target.offers(), target.default_pipeline(), target.name()), (offers, pipeline, name));
    }
}
