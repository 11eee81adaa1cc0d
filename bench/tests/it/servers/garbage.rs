//! Servers that are no stores.

use super::{accept, listen};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// A web server that understands nothing, and says so as web servers do. Its address.
pub(crate) fn http() -> String {
    let (listener, address) = listen();
    accept(listener, |mut stream: TcpStream| {
        let mut bytes = [0; 1024];
        if matches!(stream.read(&mut bytes), Ok(1..)) {
            let _ = stream.write_all(
                b"HTTP/1.1 400 Bad Request\r\nContent-Length: 12\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nBad Request\n",
            );
        }
    });
    address
}
