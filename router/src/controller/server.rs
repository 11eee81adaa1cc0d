//! The controller's listener: the binary protocol, for nodes and other controllers.

use super::{config_store::ConfigStore, connection};
use crate::accept::next_connection;
use kv_proto::{
    codec,
    error_code::{ErrorCode, WireError},
    frame::{Kind, append_message},
    ids::{DiskId, NodeId},
    limits::Limits,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::TcpListener, sync::Semaphore, sync::watch, task::JoinSet};

/// Most connections at a time; a node needs one.
const MAX_CONNECTIONS: usize = 1024;

/// Most connections of other controllers at a time, since their messages are long.
const MAX_CONTROLLERS: usize = 32;

/// What the listener is told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The name that the controller answers by.
    pub(crate) router: NodeId,
    /// What a client of this router can rely on.
    pub(crate) limits: Limits,
    /// Places for other controllers.
    pub(crate) controllers: Arc<Semaphore>,
    /// How long a stranger may take to say hello and register, counted from the accept.
    pub(crate) hello_timeout: Duration,
    /// How long a registered node may say nothing, not even ping; and how long it may take to read what it was sent.
    pub(crate) idle_timeout: Duration,
}

impl Settings {
    pub(crate) fn new(router: NodeId, limits: Limits) -> Self {
        Settings {
            router,
            limits,
            controllers: Arc::new(Semaphore::new(MAX_CONTROLLERS)),
            hello_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(10),
        }
    }
}

/// The nodes that have a connection now, with the disks that they registered and how many connections they have: two
/// processes of one name would take turns in the map.
#[derive(Debug, Default)]
pub(crate) struct Present(Mutex<HashMap<NodeId, (DiskId, usize)>>);

impl Present {
    fn nodes(&self) -> MutexGuard<'_, HashMap<NodeId, (DiskId, usize)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a node's place for as long as the returned guard lives; `None` while a process with another disk has it.
    pub(crate) fn enter(self: &Arc<Self>, node: NodeId, disk: DiskId) -> Option<PresentNode> {
        let mut nodes = self.nodes();
        let (present, connections) = nodes.entry(node).or_insert((disk, 0));
        if *present != disk {
            return None;
        }
        *connections += 1;
        Some(PresentNode { all: Arc::clone(self), node })
    }
}

/// Keeps a node's place.
#[derive(Debug)]
pub(crate) struct PresentNode {
    all: Arc<Present>,
    node: NodeId,
}

impl Drop for PresentNode {
    fn drop(&mut self) {
        let mut nodes = self.all.nodes();
        if let Some((_, connections)) = nodes.get_mut(&self.node) {
            *connections -= 1;
            if *connections == 0 {
                nodes.remove(&self.node);
            }
        }
    }
}

/// Accepts nodes until `stop` says so.
pub(crate) async fn serve(
    listener: TcpListener,
    store: ConfigStore,
    settings: Settings,
    mut stop: watch::Receiver<bool>,
) {
    let settings = Arc::new(settings);
    let present = Arc::new(Present::default());
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Some(stream) = next_connection(&listener, &mut connections, &mut stop).await {
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let (store, settings, present) = (store.clone(), settings.clone(), present.clone());
                connections.spawn(async move {
                    let _place = place;
                    connection::serve(stream, store, &settings, present).await;
                });
            }
            Err(_) => {
                let error = WireError::new(
                    ErrorCode::TooManyConnections,
                    format!("the controller has its {MAX_CONNECTIONS} connections"),
                );
                let mut bytes = Vec::new();
                append_message(&mut bytes, Kind::Refusal, 0, |body| codec::encode_into(body, &error));
                // A fresh socket takes that many bytes at once; who does not read them learns it from the close.
                let _ = stream.try_write(&bytes);
            }
        }
    }
}
