//! The router: the HTTP API over the native client, and the controller that keeps the cluster map.
//!
//! ```text
//!            HTTP ──► http/ ──► kv-client ──► nodes
//!                                 ▲ maps
//! nodes, by the binary protocol ──► controller/ ──► DATA_DIR/controller.redb
//!                                 ▲ Raft
//!                          other routers' controllers
//! ```
//!
//! The two halves share a process and one thing: what the controller publishes, the client follows. Requests never wait
//! for the controller, and the controller never sees a key.
//!
//! # Invariants
//! * Only [`controller`]'s `ConfigStore` changes the cluster map.
//! * Only `http/` knows HTTP.
//! * Asked to stop, a router takes nothing new, lets what was begun come to its end, and ends.

mod accept;
pub mod controller;
mod http;
mod options;
mod process;
mod rebuild;

#[cfg(fuzzing)]
pub use http::fuzzing;
pub use options::RouterOptions;
pub use rebuild::{RebuildError, RebuildOptions, rebuild_map};

use controller::{config_store::ConfigStore, error::OpenError, server as nodes};
use http::{Api, server as api};
use kv_client::Client;
use kv_proto::limits::Limits;
use kv_replication::cluster::Command;
use std::{
    future::Future,
    io::{self, Write as _},
    net::SocketAddr,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
};

/// Connections that may wait to be accepted; the kernel may take less.
const BACKLOG: u32 = 4096;

/// Why a router ends other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster map cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Options that cannot go together.
    #[error("{0}")]
    Options(String),
    /// An address is not free, or not one of this machine.
    #[error("cannot listen at {address} for {what} (is the port in use? choose another by {flag})")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// For whom.
        what: &'static str,
        /// The flag that chooses it.
        flag: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The native client cannot be made.
    #[error("cannot make the client")]
    Client(#[from] kv_client::Error),
    /// Something of the operating system does not work.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The controller is of no use any more; started again, it goes on from what is on its disk.
    #[error("the controller cannot go on: {0}; then start the router again")]
    Store(String),
}

/// Runs a router until SIGTERM or SIGINT: opens its data, listens, says so in a line on stdout, serves, drains.
///
/// # Errors
/// When it cannot start, or cannot go on.
pub async fn run(options: RouterOptions) -> Result<(), Error> {
    let system = |what| move |source| Error::System { what, source };
    let files = process::open_files();
    if files.is_some_and(|files| files < u64::from(options.max_connections) + 200) {
        tracing::warn!(
            ?files,
            "fewer files may be open than --max-connections needs: raise the hard limit of open files"
        );
    }
    let router = Router::start(options).await?;
    let line = format!("listening http={} controller={}\n", router.http, router.controller);
    let mut stdout = io::stdout();
    stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()).map_err(system("write to stdout"))?;
    router.serve(process::asked_to_stop()).await
}

/// A router that listens and does not serve yet.
pub struct Router {
    /// Where the HTTP API listens.
    pub http: SocketAddr,
    /// Where the controller listens.
    pub controller: SocketAddr,
    options: RouterOptions,
    store: ConfigStore,
    http_listener: TcpListener,
    controller_listener: TcpListener,
}

impl Router {
    /// Listens and opens the data.
    ///
    /// # Errors
    /// When the data cannot be used or an address is not free.
    pub async fn start(options: RouterOptions) -> Result<Router, Error> {
        let consensus = options.consensus().map_err(Error::Options)?;
        let (http_listener, http) = listen(options.http, "the HTTP API", "--http")?;
        let (controller_listener, controller) =
            listen(options.controller_listen, "the controller", "--controller-listen")?;
        let store = ConfigStore::open(&options.data_dir, options.shape(), &consensus).await?;
        Ok(Router { http, controller, options, store, http_listener, controller_listener })
    }

    /// Serves until `asked_to_stop` is ready, then lets what was begun come to its end.
    ///
    /// # Errors
    /// When the router cannot go on.
    pub async fn serve(self, asked_to_stop: impl Future<Output = io::Result<()>>) -> Result<(), Error> {
        let options = self.options;
        let limits = Limits { max_value_bytes: options.max_value_bytes };
        let deadline = Duration::from_millis(u64::from(options.deadline_ms));
        let mut client = Client::builder().deadline(deadline);
        if self.store.cluster().is_some() {
            client = client.map(self.store.get().map.clone());
        }
        let client = client.build()?;

        let (stop, stopping) = watch::channel(false);
        let api = Api::new(options.id, client.clone(), self.store.clone(), limits, !options.no_get_delete);
        let settings = api::Settings { max_connections: options.max_connections as usize, deadline };
        let mut servers = JoinSet::new();
        servers.spawn(api::serve(self.http_listener, api, settings, stopping.clone()));
        let settings = nodes::Settings::new(options.id, limits);
        servers.spawn(nodes::serve(self.controller_listener, self.store.clone(), settings, stopping));
        let following = tokio::spawn(follow(self.store.clone(), client));
        let disregarding = options.new_cluster.then(|| tokio::spawn(disregard_strangers(self.store.clone())));

        let result = tokio::select! {
            asked = asked_to_stop => asked.map_err(|source| Error::System { what: "wait for signals", source }),
            why = self.store.failed() => Err(Error::Store(why)),
        };
        stop.send_replace(true);
        while let Some(ended) = servers.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a listener ended badly");
            }
        }
        following.abort();
        if let Some(disregarding) = disregarding {
            disregarding.abort();
        }
        self.store.stop().await;
        result
    }
}

fn listen(address: SocketAddr, what: &'static str, flag: &'static str) -> Result<(TcpListener, SocketAddr), Error> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    listen().map_err(|source| Error::Listen { address, what, flag, source })
}

/// Tells the controllers that data of other clusters are to be disregarded, until they have heard it.
async fn disregard_strangers(store: ConfigStore) {
    while let Err(error) = store.cas(Command::DisregardStrangers).await {
        tracing::warn!(%error, "--new-cluster is not carried out yet");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Has the client know what the controller publishes.
async fn follow(store: ConfigStore, client: Client) {
    let mut maps = store.watch();
    maps.mark_changed();
    while maps.changed().await.is_ok() {
        let map = maps.borrow_and_update().map.clone();
        if store.cluster().is_some() {
            client.update_map(map);
        }
    }
}
