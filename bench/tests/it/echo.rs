//! `kvbench echo` as a process.

use crate::tool::{Echo, run};
use rustix::process::Signal;
use std::net::{TcpListener, TcpStream};

#[test]
fn it_says_where_it_listens_and_ends_when_told() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut echo = Echo::start("");
        let _open = TcpStream::connect(echo.address()).expect("it listens");
        assert_eq!(echo.end(signal), Some(0), "{signal:?}");
    }
}

#[test]
fn what_cannot_start_says_why_in_a_sentence() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound");
    for (flags, said) in [
        (format!("--listen {address}"), "choose another address with --listen"),
        ("--listen 127.0.0.1:0 --cpu 1023".to_owned(), "cannot stay on core 1023"),
        ("--listen 127.0.0.1:0 --cpu 99999999".to_owned(), "there is no core 99999999"),
    ] {
        let ran = run(&format!("echo {flags}"));
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{flags}: {ran}");
        assert!(ran.stderr.contains(said), "{flags}: {ran}");
    }
}
