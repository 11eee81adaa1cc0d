//! How both listeners come by their connections.

use std::{io, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// The next connection, while those there are are looked after; `None` once `stop` says so.
pub(crate) async fn next_connection(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    stop: &mut watch::Receiver<bool>,
) -> Option<TcpStream> {
    loop {
        tokio::select! {
            () = stopped(stop) => return None,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    // Small answers must not wait for each other; a socket without this still works.
                    let _ = stream.set_nodelay(true);
                    return Some(stream);
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
}

/// Waits until `stop` says so, or nobody is left who could say it.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Accepting fails for lack of something (files, memory) that others may give back in a moment; a peer that is gone
/// already needs no pause.
async fn pause_after(error: &io::Error) {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) {
        tracing::warn!(%error, "a connection could not be accepted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
