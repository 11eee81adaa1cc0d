//! Targets as a person writes them: URLs, with what is wanted of the connection.

use super::{
    Offers,
    http::HttpApi,
    kv, memcached,
    redis::{self, RedisOptions, Wait, WaitPer},
};
use kv_client::Address;
use std::{fmt, str::FromStr, time::Duration};

/// What is loaded. Shown without its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// The native protocol.
    Kv {
        /// A node of the cluster.
        node: Address,
        /// That node alone is loaded, and not all that it names.
        only_it: bool,
    },
    Http {
        address: Address,
        api: HttpApi,
    },
    Redis {
        address: Address,
        options: RedisOptions,
    },
    Memcached {
        address: Address,
    },
}

impl Target {
    pub(crate) fn offers(&self) -> Offers {
        match self {
            Target::Kv { .. } => kv::OFFERS,
            Target::Http { api, .. } => api.offers(),
            Target::Redis { .. } => redis::OFFERS,
            Target::Memcached { .. } => memcached::OFFERS,
        }
    }

    /// How many requests each connection keeps in flight if nobody says so. Most users of HTTP send one after the other.
    pub(crate) fn default_pipeline(&self) -> u32 {
        match self {
            Target::Http { .. } => 1,
            _ => 16,
        }
    }

    /// The scheme of its URL.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Target::Kv { only_it: false, .. } => "kv",
            Target::Kv { only_it: true, .. } => "kv+one",
            Target::Http { .. } => "http",
            Target::Redis { .. } => "redis",
            Target::Memcached { .. } => "memcached",
        }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &Address {
        match self {
            Target::Kv { node: address, .. }
            | Target::Http { address, .. }
            | Target::Redis { address, .. }
            | Target::Memcached { address } => address,
        }
    }
}

/// Why a text is no target. Tells nothing that may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("there is no target {0}://, but kv://, kv+one://, http://, redis:// and memcached://")]
    UnknownScheme(String),
    #[error("{0}:// needs TLS, which kvbench does not speak; name a port without it, as {1}://HOST:PORT")]
    Tls(String, &'static str),
    #[error("{0:?} names no port; write HOST:PORT, or a URL as kv://HOST")]
    NoPort(String),
    #[error("{0:?} is no port; ports are numbers from 1 to 65535")]
    BadPort(String),
    #[error("{0:?} is neither the name of a host nor an IP address; IPv6 addresses are written in brackets, as [::1]")]
    BadHost(String),
    #[error("{0}:// takes neither user nor password; only redis:// does")]
    Credentials(&'static str),
    #[error("the user or password is not as URLs have it; write @ : / ? # % in it as %40 %3A %2F %3F %23 %25")]
    BadCredentials,
    #[error("{scheme}:// has no path {path:?}; {cure}")]
    BadPath { scheme: &'static str, path: String, cure: &'static str },
    #[error("a target has no fragment; leave out the # and what follows it")]
    Fragment,
    #[error("{scheme}:// has no parameter {name:?}; {cure}")]
    UnknownParameter { scheme: &'static str, name: String, cure: &'static str },
    #[error("the parameter {name} is given twice; leave one of them out")]
    RepeatedParameter { name: &'static str },
    #[error("{name}={value} is not understood; {cure}")]
    BadParameter { name: &'static str, value: String, cure: &'static str },
    #[error("{name} says how to wait for replicas, but not for how many; add wait=1, or leave it out")]
    WaitMissing { name: &'static str },
}

/// The parts of a URL behind its scheme.
struct Parts<'a> {
    scheme: &'static str,
    credentials: Option<&'a str>,
    host_and_port: &'a str,
    /// With its slash, if there is one.
    path: &'a str,
    query: Option<&'a str>,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            let parts = Parts::of("kv", text)?;
            let node = parts.address(None)?;
            parts.has_nothing_else()?;
            return Ok(Target::Kv { node, only_it: false });
        };
        match scheme.to_ascii_lowercase().as_str() {
            "kv" => {
                let parts = Parts::of("kv", rest)?;
                let node = parts.address(Some(5001))?;
                parts.has_nothing_else()?;
                Ok(Target::Kv { node, only_it: false })
            }
            "kv+one" => {
                let parts = Parts::of("kv+one", rest)?;
                let node = parts.address(Some(5001))?;
                parts.has_nothing_else()?;
                Ok(Target::Kv { node, only_it: true })
            }
            "http" => {
                let parts = Parts::of("http", rest)?;
                let address = parts.address(Some(5000))?;
                parts.has_no_query()?;
                let api = match parts.path.trim_end_matches('/') {
                    "" => HttpApi::Documented,
                    "/v1" | "/v1/kv" => HttpApi::V1,
                    _ => {
                        return Err(parts.bad_path(
                            "http://HOST:PORT is the API of /put, /get and /delete, http://HOST:PORT/v1 that of /v1/kv",
                        ));
                    }
                };
                Ok(Target::Http { address, api })
            }
            "redis" => {
                let parts = Parts::of("redis", rest)?;
                Ok(Target::Redis { address: parts.address(Some(6379))?, options: redis_options(&parts)? })
            }
            "memcached" => {
                let parts = Parts::of("memcached", rest)?;
                let address = parts.address(Some(11211))?;
                parts.has_nothing_else()?;
                Ok(Target::Memcached { address })
            }
            "https" => Err(TargetError::Tls("https".to_owned(), "http")),
            "rediss" => Err(TargetError::Tls("rediss".to_owned(), "redis")),
            other => Err(TargetError::UnknownScheme(other.to_owned())),
        }
    }
}

impl<'a> Parts<'a> {
    fn of(scheme: &'static str, rest: &'a str) -> Result<Parts<'a>, TargetError> {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        // Such a password would be taken for a path, and told in errors.
        if rest.contains('@') {
            return Err(TargetError::BadCredentials);
        }
        let (credentials, host_and_port) =
            authority.rsplit_once('@').map_or((None, authority), |(credentials, host)| (Some(credentials), host));
        if credentials.is_some() && scheme != "redis" {
            return Err(TargetError::Credentials(scheme));
        }
        if rest.contains('#') {
            return Err(TargetError::Fragment);
        }
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        Ok(Parts { scheme, credentials, host_and_port, path, query })
    }

    fn address(&self, default_port: Option<u16>) -> Result<Address, TargetError> {
        let text = self.host_and_port;
        let after_host = if text.starts_with('[') {
            text.find(']').map_or(text.len(), |end| end + 1)
        } else {
            text.find(':').unwrap_or(text.len())
        };
        let (host, port) = text.split_at(after_host);
        let bad_host = |host: &str| TargetError::BadHost(host.to_owned());
        let port = match (port.strip_prefix(':'), default_port) {
            (None, _) if !port.is_empty() => return Err(bad_host(text)),
            (None, Some(default)) => default,
            (None | Some(""), _) => return Err(TargetError::NoPort(text.to_owned())),
            (Some(more), _) if more.contains(':') => return Err(bad_host(text)),
            (Some(digits), _) => {
                let port = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten();
                port.filter(|p| *p > 0).ok_or_else(|| TargetError::BadPort(digits.to_owned()))?
            }
        };
        format!("{host}:{port}").parse().map_err(|_| bad_host(host))
    }

    fn has_nothing_else(&self) -> Result<(), TargetError> {
        if !matches!(self.path, "" | "/") {
            return Err(self.bad_path("leave it out"));
        }
        self.has_no_query()
    }

    fn has_no_query(&self) -> Result<(), TargetError> {
        match self.parameters().next() {
            None => Ok(()),
            Some((name, _)) => Err(self.unknown_parameter(name, "leave it out")),
        }
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let parameters = self.query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
        parameters.map(|parameter| parameter.split_once('=').unwrap_or((parameter, "")))
    }

    fn bad_path(&self, cure: &'static str) -> TargetError {
        TargetError::BadPath { scheme: self.scheme, path: self.path.to_owned(), cure }
    }

    fn unknown_parameter(&self, name: &str, cure: &'static str) -> TargetError {
        TargetError::UnknownParameter { scheme: self.scheme, name: name.to_owned(), cure }
    }
}

const DEFAULT_WAIT_TIMEOUT: Duration = Duration::from_secs(1);

fn redis_options(parts: &Parts<'_>) -> Result<RedisOptions, TargetError> {
    let (user, password) = match parts.credentials {
        None => (None, None),
        Some(credentials) => {
            let (user, password) = credentials.split_once(':').ok_or(TargetError::BadCredentials)?;
            let user = if user.is_empty() { None } else { Some(percent_decoded(user)?) };
            (user, Some(percent_decoded(password)?))
        }
    };
    let db = match parts.path.strip_prefix('/').unwrap_or_default() {
        "" => 0,
        digits => digits
            .parse()
            .ok()
            .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| parts.bad_path("the path is the number of the database, as /0"))?,
    };
    let wait = redis_wait(parts)?;
    Ok(RedisOptions { user, password, db, wait })
}

fn redis_wait(parts: &Parts<'_>) -> Result<Option<Wait>, TargetError> {
    let (mut replicas, mut timeout, mut per) = (None, None, None);
    for (name, value) in parts.parameters() {
        let bad = |name, cure| TargetError::BadParameter { name, value: value.to_owned(), cure };
        let (name, is_repeated) = match name {
            "wait" => {
                let cure = "give the number of replicas that must have a write, 1 or more, or leave it out";
                let number = value.parse::<u32>().ok().filter(|n| *n > 0).ok_or_else(|| bad("wait", cure))?;
                ("wait", replicas.replace(number).is_some())
            }
            "wait-timeout" => {
                let cure = "give a time of 1ms or more, as 500ms or 1s";
                let time = humantime::parse_duration(value).ok().filter(|t| t.as_millis() > 0);
                let time = time.ok_or_else(|| bad("wait-timeout", cure))?;
                ("wait-timeout", timeout.replace(time).is_some())
            }
            "wait-per" => {
                let value = match value {
                    "write" => WaitPer::Write,
                    "batch" => WaitPer::Batch,
                    _ => return Err(bad("wait-per", "give write or batch")),
                };
                ("wait-per", per.replace(value).is_some())
            }
            other => return Err(parts.unknown_parameter(other, "there are wait, wait-timeout and wait-per")),
        };
        if is_repeated {
            return Err(TargetError::RepeatedParameter { name });
        }
    }
    match replicas {
        Some(replicas) => Ok(Some(Wait {
            replicas,
            timeout: timeout.unwrap_or(DEFAULT_WAIT_TIMEOUT),
            per: per.unwrap_or(WaitPer::Write),
        })),
        None if timeout.is_some() => Err(TargetError::WaitMissing { name: "wait-timeout" }),
        None if per.is_some() => Err(TargetError::WaitMissing { name: "wait-per" }),
        None => Ok(None),
    }
}

fn percent_decoded(text: &str) -> Result<String, TargetError> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        let b = match b {
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else { return Err(TargetError::BadCredentials) };
                (high * 16 + low) as u8
            }
            b => b,
        };
        out.push(b);
    }
    String::from_utf8(out).map_err(|_| TargetError::BadCredentials)
}

/// As it is written, but for the password.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.name())?;
        match self {
            Target::Http { address, api: HttpApi::V1 } => write!(f, "{address}/v1"),
            Target::Redis { address, options: RedisOptions { user, password, db, wait } } => {
                if let Some(user) = user {
                    f.write_str(user)?;
                }
                if password.is_some() {
                    f.write_str(":***@")?;
                }
                write!(f, "{address}")?;
                if *db != 0 {
                    write!(f, "/{db}")?;
                }
                let Some(Wait { replicas, timeout, per }) = wait else { return Ok(()) };
                let per = match per {
                    WaitPer::Write => "write",
                    WaitPer::Batch => "batch",
                };
                // URLs have no spaces.
                let timeout = humantime::format_duration(*timeout).to_string().replace(' ', "");
                write!(f, "?wait={replicas}&wait-timeout={timeout}&wait-per={per}")
            }
            _ => write!(f, "{}", self.address()),
        }
    }
}

#[cfg(test)]
mod tests;
