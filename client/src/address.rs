//! The address of a node, as a person writes it.

use crate::Error;
use std::{fmt, str::FromStr};

/// Where a node listens: `host:port` or `kv://host:port`. Names are resolved when a connection is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(String);

impl Address {
    /// The address as `host:port`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidAddress { text: text.to_owned() };
        let rest = text.strip_prefix("kv://").unwrap_or(text);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let port_is_valid = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
        // A colon in a host is an IPv6 address, which needs its brackets.
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_is_valid = match bare {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        if port_is_valid && host_is_valid { Ok(Address(rest.to_owned())) } else { Err(invalid()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port_with_or_without_the_scheme() {
        for (text, address) in [
            ("127.0.0.1:5001", "127.0.0.1:5001"),
            ("kv://127.0.0.1:5001", "127.0.0.1:5001"),
            ("kv://node-1.example_net:1/", "node-1.example_net:1"),
            ("kv://[::1]:5001", "[::1]:5001"),
        ] {
            assert_eq!(text.parse::<Address>().expect(text).as_str(), address);
        }
        for text in [
            "",
            "host",
            ":5001",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "kv://",
            "http://127.0.0.1:5000",
            "kv://user@host:1",
            "kv://host:1/path",
            "::1:5001",
            "[host]:1",
            "a b:1",
        ] {
            assert_eq!(text.parse::<Address>(), Err(Error::InvalidAddress { text: text.to_owned() }));
        }
    }
}
