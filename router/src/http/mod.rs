//! The HTTP API: only this folder knows HTTP.
//!
//! ```text
//! server.rs ─► Api::handle ─► route.rs ─► documented.rs   /put /get /delete: JSON, as users know it
//! (sockets)                              ├► raw.rs         /v1/kv/KEY: bytes, ETags, RFC 9457
//!                                        ├► survey.rs      /readyz /v1/topology: how the cluster is
//!                                        └► admin.rs       /v1/admin/…: what a person wants of it
//! ```
//!
//! Everything that can be decided without a socket is a function of its own beside its tests: `query.rs`,
//! `head.rs`, `json_body.rs`, `value.rs`, `conditions.rs`, `error.rs`, `route.rs`, `health.rs`, `admin_request.rs`,
//! `same_origin.rs`.
//!
//! # Invariants
//! * An error answer says what became of the request; a success is told only after the cluster promised it.
//! * Limits are checked before memory is taken, and apply to decoded keys and values; those of heads stand in
//!   `head.rs`.
//! * A write that was begun is finished, whether or not its caller still listens.
//!
//! What it lacks: TLS, authentication, HTTP/2, and compression.

mod admin;
mod admin_request;
mod conditions;
mod documented;
mod error;
mod exchange;
#[cfg(fuzzing)]
pub mod fuzzing;
mod head;
mod health;
mod json_body;
mod query;
mod raw;
mod route;
mod same_origin;
pub(crate) mod server;
mod survey;
#[cfg(test)]
mod test_stats;
mod value;
mod watched_stream;

use crate::controller::config_store::ConfigStore;
use bytes::Bytes;
use error::ApiError;
use exchange::{Body, BodyPatience, Budget, Held, Reply, reply};
use health::{Health, Status};
use hyper::{
    Request, StatusCode,
    body::Incoming,
    header::{HeaderName, HeaderValue},
};
use kv_client::Client;
use kv_proto::{
    ids::NodeId,
    limits::{Limits, MAX_KEY_BYTES},
};
use route::{LISTING, Route};
use std::{future::Future, sync::Arc, time::Duration};
use watched_stream::Exchange;

/// What requests and answers may hold all together, in bytes, unless a few of the largest need more.
const BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// How long a request for a newer map waits: less than anyone on the way gives up after.
const MAP_PATIENCE: Duration = Duration::from_secs(2);
/// Longest request id that is taken from a caller, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The API; cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    router: NodeId,
    client: Client,
    store: ConfigStore,
    limits: Limits,
    get_deletes: bool,
    budget: Budget,
    patience: BodyPatience,
}

impl Api {
    pub(crate) fn new(router: NodeId, client: Client, store: ConfigStore, limits: Limits, get_deletes: bool) -> Self {
        let budget = Budget::new(BUDGET_BYTES.max(8 * json_limit(limits)));
        let patience = BodyPatience::default();
        Api { inner: Arc::new(Inner { router, client, store, limits, get_deletes, budget, patience }) }
    }

    /// Answers a request, whatever it is.
    async fn handle(&self, request: Request<Incoming>, exchange: Exchange) -> Reply {
        let id = request_id(&request);
        let mut reply = self.inner.answer(request).await.map(|body| body.ending(exchange));
        let headers = reply.headers_mut();
        headers.insert(REQUEST_ID, id);
        // What was stored is not a page of this site, whatever its content type says.
        headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
        reply
    }
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        if let Err(error) = head::check(&request) {
            return error.problem();
        }
        let path = request.uri().path().to_string();
        let Some(route) = Route::find(&path) else { return ApiError::unknown_route(&path).problem() };
        let result = if route.allows(request.method(), self.get_deletes) {
            match route {
                Route::Put => self.put(request).await,
                Route::Get => self.get(request).await,
                Route::Delete => self.delete(request).await,
                Route::Value(key) => self.value(key, request).await,
                Route::Topology => self.topology().await,
                Route::Map => self.map(request.uri().query().unwrap_or_default()).await,
                Route::Admin(admin) => self.admin(admin, request).await,
                Route::Controllers => {
                    let body = serde_json::to_vec(&self.store.standing()).expect("texts are JSON");
                    Ok(reply(StatusCode::OK, value::JSON, Body::from(body)))
                }
                Route::Health => Ok(reply(StatusCode::OK, value::JSON, Body::from(r#"{"status":"ok"}"#))),
                Route::Ready => self.ready().await,
                Route::Index => Ok(reply(StatusCode::OK, value::TEXT, Body::from(LISTING))),
            }
        } else {
            Err(ApiError::wrong_method(request.method(), route.allow(self.get_deletes)))
        };
        result.unwrap_or_else(|error| {
            tracing::debug!(%path, code = error.code, detail = error.detail, "a request failed");
            if route.is_documented() { error.documented() } else { error.problem() }
        })
    }

    async fn read_body(&self, request: Request<Incoming>, limit: usize) -> Result<(Bytes, Held), ApiError> {
        exchange::check_encoding(request.headers())?;
        exchange::read_body(request.into_body(), limit, &self.budget, self.patience).await
    }

    async fn ready(&self) -> Result<Reply, ApiError> {
        let cluster = self.store.get();
        if let Some(why) = cluster.held_back() {
            return Err(ApiError::not_ready(why));
        }
        let map = &cluster.map;
        // Without the whole map there is an answer already.
        let answers = if map.is_complete() { survey::ask(&self.client, map).await } else { survey::Answers::new() };
        let health = Health::of(map, &answers, self.store.standing().has_majority);
        if health.status == Status::Unavailable {
            return Err(ApiError::not_ready(health.problems.join("; ")));
        }
        Ok(reply(StatusCode::OK, value::JSON, Body::from(serde_json::to_vec(&health).expect("texts are JSON"))))
    }

    /// The map; with `after`, as soon as it is newer than that, or after [`MAP_PATIENCE`].
    async fn map(&self, query: &str) -> Result<Reply, ApiError> {
        if let Some(after) = query::after_of_query(query)? {
            let mut maps = self.store.watch();
            let newer = maps.wait_for(|cluster| cluster.map.version > after);
            // Whoever waited in vain gets what there is.
            let _ = tokio::time::timeout(MAP_PATIENCE, newer).await;
        }
        let body = serde_json::to_vec(&self.store.get().map).expect("a map is JSON");
        let held = self.budget.hold(body.len())?;
        Ok(reply(StatusCode::OK, value::JSON, Body::from(body).holding(held)))
    }

    async fn topology(&self) -> Result<Reply, ApiError> {
        let map = &self.store.get().map;
        let answers = survey::ask(&self.client, map).await;
        let health = Health::of(map, &answers, self.store.standing().has_majority);
        let topology = survey::Topology::new(self.router, health, map, &answers);
        let body = serde_json::to_vec(&topology).expect("a map is JSON");
        let held = self.budget.hold(body.len())?;
        Ok(reply(StatusCode::OK, value::JSON, Body::from(body).holding(held)))
    }
}

/// Longest JSON body, in bytes: every byte of key and value may be written as `\u00xx`.
fn json_limit(limits: Limits) -> usize {
    6 * (limits.max_value_bytes as usize + MAX_KEY_BYTES) + 4096
}

/// Runs a write to its end, even if the caller's connection breaks and with it the handler; what it holds is held as
/// long.
async fn finish<T: Send + 'static>(
    held: Held,
    write: impl Future<Output = Result<T, kv_client::Error>> + Send + 'static,
) -> Result<T, ApiError> {
    let task = tokio::spawn(async move {
        let _held = held;
        write.await
    });
    match task.await {
        Ok(result) => result.map_err(ApiError::from),
        Err(error) => {
            tracing::error!(%error, "a write did not come to its end");
            Err(ApiError::interrupted("the router failed while it carried out the write"))
        }
    }
}

/// The id that a request brought, if it is one that can be logged, else a new one.
fn request_id<B>(request: &Request<B>) -> HeaderValue {
    let usable = |id: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    request.headers().get(REQUEST_ID).filter(usable).cloned().unwrap_or_else(|| {
        HeaderValue::try_from(format!("{:016x}", rand::random::<u64>())).expect("digits are a header value")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_taken_or_made() {
        let with = |id: &str| request_id(&Request::builder().header(REQUEST_ID, id).body(()).expect("a request"));
        assert_eq!(with("abc-1/2"), "abc-1/2");
        for bad in ["", "a b", &"x".repeat(129)] {
            assert_eq!(with(bad).len(), 16, "{bad:?}");
        }
        let none = || request_id(&Request::new(()));
        assert_ne!(none(), none());
    }
}
