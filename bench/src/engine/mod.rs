//! The load itself.
//!
//! A load is one or more *units*, a thread each. A unit draws operations, keeps those that are under way, and has *lanes*, a connection
//! each. What a unit decides is without I/O (`unit`, `pace`, `places`, `plan`); lanes carry the requests (`lane`), a pacer keeps the time
//! where operations have intended starts (`crew`, `clock`). The threads go through phases together (`crew`): load, warm-up, run, audit.
//! Where a cluster is loaded, the plan of who leads what follows it (`routes`, `cluster`).
//!
//! # Time
//! A *response* is timed from when the operation should have started: in an open loop from its place in the schedule, whatever
//! became of those before it (Tene, "How NOT to Measure Latency"); after thinking from when the user was ready; else from when it was
//! drawn. The *service* of it is timed from the sending of its first request. Both end when its last answer was read.

mod clock;
mod cluster;
mod crew;
mod lane;
mod operation;
mod pace;
mod places;
mod plan;
mod routes;
#[cfg(test)]
pub(crate) mod samples;
mod setup;
mod unit;
mod usage;

pub(crate) use clock::Clock;
pub(crate) use cluster::{Cluster, ask, ask_all};
pub(crate) use crew::{Crew, Paces, Share, Task};
pub(crate) use lane::Connect;
pub(crate) use operation::{Action, Ended, Expected, Ns};
pub(crate) use plan::{Place, Plan};
pub(crate) use routes::Routes;
pub(crate) use setup::Setup;
pub(crate) use usage::Usage;
