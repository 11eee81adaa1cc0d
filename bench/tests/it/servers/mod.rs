//! Servers in the test's own process.
//!
//! `cluster` nodes that lead the partitions of one store · `redis` a server without versions · `store` what both keep and how they lie
//! about it · `garbage` what is no store at all

mod cluster;
mod garbage;
mod redis;
mod store;

pub(crate) use cluster::{Cluster, Mood, Seen, Shape};
pub(crate) use garbage::http;
pub(crate) use redis::Redis;
pub(crate) use store::Cheat;

use std::{
    net::{TcpListener, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// A thread for each connection, until the test's process ends.
fn accept(listener: TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            stream.set_nodelay(true).expect("a socket");
            std::thread::spawn(move || serve(stream));
        }
    });
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

/// A server that panicked has said so; the others go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
