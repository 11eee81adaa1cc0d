//! Whether the ports of a plan are free: looked at before anything is started, so that a busy one is told once and
//! with the flag that helps. A port that is taken between this look and its use is told by the process that wanted it.

use super::plan::{Plan, Role};
use anyhow::{Context, anyhow, bail};
use std::{
    io,
    net::{SocketAddr, TcpListener},
};

/// Refuses a plan with a port that cannot be listened on.
pub(super) fn require_free(plan: &Plan) -> anyhow::Result<()> {
    for (name, address) in plan.fixed_addresses() {
        if let Err(error) = TcpListener::bind(address) {
            let is_http = plan.processes.iter().any(|p| p.role == Role::Router && p.name == name);
            bail!(refusal(&name, address, is_http, &error));
        }
    }
    Ok(())
}

/// Chooses the ports of controllers that have to know each other's before they start.
pub(super) fn settle(plan: &mut Plan) -> anyhow::Result<()> {
    // All stay taken until the last is chosen, so that none is chosen twice.
    let mut taken = Vec::new();
    plan.settle_controllers(|address| {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        taken.push(listener);
        Ok(address)
    })
    .context("cannot find free ports for the controllers")
}

fn refusal(name: &str, address: SocketAddr, is_http: bool, error: &io::Error) -> anyhow::Error {
    let port = address.port();
    let cure =
        if is_http { "choose another with --http ADDRESS:PORT" } else { "let all be free ones with --ports auto" };
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!("port {port}, which {name} needs, is in use (see `ss -ltnp sport = :{port}`): stop that, or {cure}")
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!("port {port}, which {name} needs, is one that only root may listen on: {cure}")
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("{} is no address of this machine: {cure}", address.ip())
        }
        _ => anyhow!("cannot listen on {address} for {name} ({error}): {cure}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_sentence() {
        use io::ErrorKind::{AddrInUse, AddrNotAvailable, Other, PermissionDenied};
        let address = "127.0.0.1:5000".parse().expect("an address");
        for (kind, is_http, words) in [
            (AddrInUse, true, ["port 5000, which router needs, is in use", "--http"]),
            (AddrInUse, false, ["port 5000, which router needs, is in use", "--ports auto"]),
            (PermissionDenied, true, ["only root", "--http"]),
            (AddrNotAvailable, true, ["127.0.0.1 is no address of this machine", "--http"]),
            (Other, false, ["cannot listen on 127.0.0.1:5000 for router", "--ports auto"]),
        ] {
            let text = refusal("router", address, is_http, &kind.into()).to_string();
            assert!(words.iter().all(|w| text.contains(w)), "{kind:?}: {text}");
        }
    }
}
