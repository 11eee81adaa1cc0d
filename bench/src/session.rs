//! A load on its target, ready to go: what the threads share, and their connections.

use crate::{
    engine::{self, Clock, Connect, Crew, Place, Plan, Routes, Setup, Share},
    options::{Load, LoadOptions},
    target::{Broken, Codec, HttpCodec, KvConnection, MemcachedCodec, RedisCodec, StreamConnection, Target},
    verify::{Judge, Windows},
    workload::{Kind, Values},
};
use anyhow::ensure;
use kv_client::{Address, ConnectOptions, OperationIds, proto::ids::ClusterId};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// Open files beside the connections.
const OTHER_FILES: u64 = 64;
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What a session does beside loading.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extras {
    /// Judges every answer, and the whole histories of about so many keys.
    pub(crate) verify_keys: Option<u32>,
    /// Watches how long each of so many partitions goes without a write.
    pub(crate) windows_of: Option<u16>,
}

pub(crate) struct Session {
    pub(crate) setup: Arc<Setup>,
    pub(crate) crew: Crew,
    /// Keeps the plan true as long as it is there.
    pub(crate) follower: Follower,
    /// What is loaded: leaders, and executors of theirs; or servers.
    pub(crate) nodes: usize,
    pub(crate) places: usize,
}

/// A task that follows the cluster until it is dropped.
pub(crate) struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Learns where everything goes, and makes the connections.
    ///
    /// # Errors
    /// When the target cannot be reached or loaded like this.
    pub(crate) async fn open(
        target: &Target,
        load: &Load,
        options: &LoadOptions,
        extras: Extras,
        share: Share,
    ) -> anyhow::Result<Session> {
        let routes = routes(target, load, extras).await?;
        let plan = routes.current().1;
        let (nodes, places) = (plan.nodes(), plan.places.len());
        let lanes = share.connections / share.threads;
        ensure!(
            lanes as usize >= places,
            "{} connections of {} threads do not reach all {places} executors that lead from each thread; use \
             --connections {} or more",
            share.connections,
            share.threads,
            places as u32 * share.units
        );
        make_room(share.connections)?;
        let offers = target.offers();
        let judge = extras.verify_keys.map(|keys| Judge::new(&load.workload, keys, offers.ordered_versions));
        let has_ids = offers.operation_ids && (judge.is_some() || options.operation_ids);
        let values_up_to = load.workload.sizes.max() as usize;
        let setup = Arc::new(Setup {
            workload: Arc::new(load.workload.clone()),
            values: Values::new(load.workload.seed, values_up_to),
            pipeline: load.pipeline as usize,
            deadline: options.deadline,
            clock: Clock::new(),
            routes,
            judge,
            windows: extras.windows_of.map(Windows::new),
            operation_ids: has_ids.then(OperationIds::of_new_client),
        });
        let crew = start(target, &setup, share, plan.cluster).await?;
        let follow = {
            let setup = Arc::clone(&setup);
            async move { setup.routes.follow().await }
        };
        let follower = Follower(tokio::spawn(follow));
        Ok(Session { setup, crew, follower, nodes, places })
    }
}

/// Sees to it that so many connections can be open.
fn make_room(connections: u32) -> anyhow::Result<()> {
    let needed = u64::from(connections) + OTHER_FILES;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_some_and(|current| current < needed) {
        limit.current = limit.maximum.map_or(Some(needed), |maximum| Some(maximum.min(needed)));
        let _ = setrlimit(Resource::Nofile, limit);
    }
    match getrlimit(Resource::Nofile).current {
        Some(current) if current < needed => anyhow::bail!(
            "{connections} connections need {needed} open files, and this process may have {current}; allow more by \
             `ulimit -n {needed}`, or use fewer --connections"
        ),
        _ => Ok(()),
    }
}

async fn routes(target: &Target, load: &Load, extras: Extras) -> anyhow::Result<Routes> {
    let Target::Kv { node, only_it } = target else {
        return Ok(Routes::fixed(Plan::single(target.address().as_str().to_owned(), extras.windows_of)));
    };
    let (name, cluster) = engine::ask(node, load.workload.sizes.max()).await?;
    let only = only_it.then_some(name);
    let plan = Plan::of_map(&cluster.map, &cluster.owners, only)?;
    plan.check()?;
    Ok(Routes::of_cluster(plan, cluster, only))
}

async fn start(target: &Target, setup: &Arc<Setup>, share: Share, cluster: Option<ClusterId>) -> anyhow::Result<Crew> {
    let deadline = setup.deadline;
    match target.clone() {
        Target::Kv { .. } => Crew::start(setup, share, move || KvConnect { cluster, deadline }).await,
        Target::Http { address, api } => {
            let host = address.clone();
            over_stream(setup, share, address, move || HttpCodec::new(&host, api)).await
        }
        Target::Redis { address, options } => {
            over_stream(setup, share, address, move || RedisCodec::new(options.clone())).await
        }
        Target::Memcached { address } => {
            // Versions are read only for who writes by them.
            let with_versions = setup.workload.mix.contains(Kind::Cas);
            over_stream(setup, share, address, move || MemcachedCodec::new(with_versions)).await
        }
    }
}

async fn over_stream<C, F>(setup: &Arc<Setup>, share: Share, address: Address, codec: F) -> anyhow::Result<Crew>
where
    C: Codec + 'static,
    F: Fn() -> C + Clone + Send + 'static,
{
    let connect = move || StreamConnect { address: address.clone(), codec: codec.clone() };
    Crew::start(setup, share, connect).await
}

/// Connects to one server; each connection has a codec of its own.
struct StreamConnect<F> {
    address: Address,
    codec: F,
}

impl<C: Codec, F: Fn() -> C> Connect for StreamConnect<F> {
    type Connection = StreamConnection<C>;

    async fn connect(&self, _: &Place) -> Result<StreamConnection<C>, Broken> {
        StreamConnection::connect(&self.address, (self.codec)(), CONNECT_TIMEOUT).await
    }
}

/// Connects to executors of nodes.
struct KvConnect {
    cluster: Option<ClusterId>,
    deadline: Duration,
}

impl Connect for KvConnect {
    type Connection = KvConnection;

    async fn connect(&self, place: &Place) -> Result<KvConnection, Broken> {
        let options = ConnectOptions { cluster: self.cluster, executor: place.executor, timeout: CONNECT_TIMEOUT };
        let address = place
            .address
            .parse()
            .map_err(|e: kv_client::Error| Broken { code: "unreachable", cause: e.to_string() })?;
        KvConnection::connect(&address, place.node, &options, self.deadline).await
    }
}
