//! As much of Redis as the load tool speaks: no versions, no ids, no conditions.

use super::{
    accept, listen, lock,
    store::{Cheat, Store, Wrote},
};
use kv_proto::{ids::PartitionId, request::Condition};
use std::{
    io::{BufRead, BufReader, BufWriter, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
};

pub(crate) struct Redis {
    address: String,
}

impl Redis {
    pub(crate) fn start(cheat: Option<Cheat>) -> Redis {
        let (listener, address) = listen();
        let store = Arc::new(Mutex::new(Store::new(cheat)));
        accept(listener, move |stream| _ = serve(&stream, &store));
        Redis { address }
    }

    /// As a target.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

/// Until the caller closes the connection, or says what is no command.
fn serve(stream: &TcpStream, store: &Mutex<Store>) -> Option<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), BufWriter::new(stream));
    loop {
        let command = command(&mut reader)?;
        answer(&command, &mut lock(store), &mut writer)?;
        // What came together is answered together.
        if reader.buffer().is_empty() {
            writer.flush().ok()?;
        }
    }
}

fn command(reader: &mut impl BufRead) -> Option<Vec<Vec<u8>>> {
    let count = number(reader, '*')?;
    (0..count).map(|_| bulk(reader)).collect()
}

fn bulk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut bytes = vec![0; number(reader, '$')? + 2];
    reader.read_exact(&mut bytes).ok()?;
    bytes.truncate(bytes.len() - 2);
    Some(bytes)
}

/// A line of a number behind this sign.
fn number(reader: &mut impl BufRead, sign: char) -> Option<usize> {
    let mut line = String::new();
    reader.take(32).read_line(&mut line).ok()?;
    line.strip_prefix(sign)?.trim_end().parse().ok()
}

fn answer(command: &[Vec<u8>], store: &mut Store, out: &mut impl Write) -> Option<()> {
    let words: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
    let mut write = |key: &[u8], value: Option<&[u8]>| store.write(PartitionId(0), key, value, Condition::Any, None);
    let written = match words[..] {
        [b"PING"] => out.write_all(b"+PONG\r\n"),
        [b"SET", key, value] => match write(key, Some(value)) {
            Wrote::Refused => out.write_all(b"-OOM too much to do\r\n"),
            _ => out.write_all(b"+OK\r\n"),
        },
        [b"DEL", key] => match write(key, None) {
            Wrote::Refused => out.write_all(b"-OOM too much to do\r\n"),
            Wrote::Missing => out.write_all(b":0\r\n"),
            _ => out.write_all(b":1\r\n"),
        },
        [b"GET", key] => match store.read(key) {
            Some((_, value)) => write!(out, "${}\r\n", value.len())
                .and_then(|()| out.write_all(&value))
                .and_then(|()| out.write_all(b"\r\n")),
            None => out.write_all(b"$-1\r\n"),
        },
        _ => out.write_all(b"-ERR unknown command\r\n"),
    };
    written.ok()
}
