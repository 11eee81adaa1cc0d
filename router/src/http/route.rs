//! The addresses of the API: which path leads where, and by which methods.
//!
//! The table is small and fixed, so that it is a `match`; `GET /` tells people of it. A trailing slash changes nothing,
//! except behind `/v1/kv/`, where everything that follows is the key.

use super::admin::Admin;
use hyper::Method;

/// The addresses as `/` tells them.
pub(super) const LISTING: &str = "\
POST|PUT /put             body {\"key\": \"…\", \"value\": any JSON}
GET|POST /get?key=KEY     the value as JSON; POST takes {\"key\": \"…\"} as well
DELETE   /delete?key=KEY  (also GET, unless the router was told otherwise)
PUT|GET|HEAD|DELETE /v1/kv/KEY   raw bytes, Content-Type kept; ETag, If-Match, If-None-Match
PUT /v1/kv/KEY?ttl=SECONDS       the value is gone by itself after that time, as in ttl=60 or ttl=0.5
GET /v1/topology          the cluster map and how its nodes are, as JSON
GET /v1/map               the cluster map alone; with ?after=VERSION it waits a while for a newer one
POST /v1/admin/handoff    body {\"partitions\": [3]}, {\"led_by\": \"NODE\"} or {\"all\": true}; \"to\": \"NODE\" if it matters
POST /v1/admin/drop       body {\"partitions\": [3], \"node\": \"NODE\"}: the leader goes on without that follower
POST /v1/admin/force-recover   see `kv admin force-recover --help`
GET /readyz               200 when every partition takes writes: \"ready\", or \"degraded\" with the reasons
GET /v1/controllers       who keeps the cluster map: voters and leader, as JSON
GET /healthz              200 while the router runs
";

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `/put`
    Put,
    /// `/get`
    Get,
    /// `/delete`
    Delete,
    /// `/v1/kv/…`; the key as it stands in the path, percent-encoded.
    Value(&'a str),
    /// `/v1/topology`
    Topology,
    /// `/v1/map`
    Map,
    /// `/v1/admin/…`
    Admin(Admin),
    /// `/v1/controllers`
    Controllers,
    /// `/healthz`
    Health,
    /// `/readyz`
    Ready,
    /// `/`
    Index,
}

impl<'a> Route<'a> {
    /// The route of a path as it was sent.
    pub(super) fn find(path: &'a str) -> Option<Self> {
        if let Some(key) = path.strip_prefix("/v1/kv/") {
            return Some(Route::Value(key));
        }
        match path.strip_suffix('/').unwrap_or(path) {
            "/put" => Some(Route::Put),
            "/get" => Some(Route::Get),
            "/delete" => Some(Route::Delete),
            "/v1/kv" => Some(Route::Value("")),
            "/v1/topology" => Some(Route::Topology),
            "/v1/map" => Some(Route::Map),
            "/v1/admin/handoff" => Some(Route::Admin(Admin::Handoff)),
            "/v1/admin/drop" => Some(Route::Admin(Admin::Drop)),
            "/v1/admin/force-recover" => Some(Route::Admin(Admin::ForceRecover)),
            "/v1/controllers" => Some(Route::Controllers),
            "/healthz" => Some(Route::Health),
            "/readyz" => Some(Route::Ready),
            "" => Some(Route::Index),
            _ => None,
        }
    }

    /// Whether bodies are those that the documented API promises: a string `status` in each, errors too.
    pub(super) fn is_documented(self) -> bool {
        matches!(self, Route::Put | Route::Get | Route::Delete)
    }

    /// The methods that it takes, as the `Allow` header lists them.
    pub(super) fn allow(self, get_deletes: bool) -> &'static str {
        match self {
            Route::Put => "POST, PUT",
            Route::Get => "GET, HEAD, POST",
            Route::Delete if get_deletes => "DELETE, GET",
            Route::Delete => "DELETE",
            Route::Value(_) => "GET, HEAD, PUT, DELETE",
            Route::Admin(_) => "POST",
            Route::Topology | Route::Map | Route::Controllers | Route::Health | Route::Ready | Route::Index => {
                "GET, HEAD"
            }
        }
    }

    /// Whether it takes a method.
    pub(super) fn allows(self, method: &Method, get_deletes: bool) -> bool {
        self.allow(get_deletes).split(", ").any(|allowed| allowed == method.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, route) in [
            ("/put", Some(Route::Put)),
            ("/put/", Some(Route::Put)),
            ("/get", Some(Route::Get)),
            ("/get/", Some(Route::Get)),
            ("/delete/", Some(Route::Delete)),
            ("/v1/kv/a", Some(Route::Value("a"))),
            ("/v1/kv/a/", Some(Route::Value("a/"))),
            ("/v1/kv/a/b%2Fc", Some(Route::Value("a/b%2Fc"))),
            ("/v1/kv//", Some(Route::Value("/"))),
            ("/v1/kv/", Some(Route::Value(""))),
            ("/v1/kv", Some(Route::Value(""))),
            ("/v1/topology", Some(Route::Topology)),
            ("/v1/map", Some(Route::Map)),
            ("/v1/admin/drop", Some(Route::Admin(Admin::Drop))),
            ("/v1/admin", None),
            ("/v1/controllers", Some(Route::Controllers)),
            ("/healthz", Some(Route::Health)),
            ("/readyz/", Some(Route::Ready)),
            ("/", Some(Route::Index)),
            ("", Some(Route::Index)),
            ("/put//", None),
            ("//put", None),
            ("/PUT", None),
            ("/v1", None),
            ("/v1/kvx", None),
            ("*", None),
        ] {
            assert_eq!(Route::find(path), route, "{path}");
        }
    }

    #[test]
    fn methods() {
        for (route, method, get_deletes, expected) in [
            (Route::Put, Method::POST, true, true),
            (Route::Put, Method::PUT, true, true),
            (Route::Put, Method::GET, true, false),
            (Route::Get, Method::GET, true, true),
            (Route::Get, Method::HEAD, true, true),
            (Route::Get, Method::POST, true, true),
            (Route::Get, Method::DELETE, true, false),
            (Route::Delete, Method::DELETE, false, true),
            (Route::Delete, Method::GET, true, true),
            (Route::Delete, Method::GET, false, false),
            (Route::Delete, Method::HEAD, true, false),
            (Route::Value("k"), Method::PATCH, true, false),
            (Route::Value("k"), Method::POST, true, false),
            (Route::Index, Method::OPTIONS, true, false),
            (Route::Admin(Admin::Handoff), Method::POST, true, true),
            (Route::Admin(Admin::Handoff), Method::GET, true, false),
            (Route::Admin(Admin::Handoff), Method::OPTIONS, true, false),
        ] {
            assert_eq!(route.allows(&method, get_deletes), expected, "{route:?} {method}");
        }
    }
}
