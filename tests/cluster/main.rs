//! Whole clusters of real processes: `kv local` as a person starts it, HTTP as a person speaks it, `kill` as trouble
//! comes. All in one test program, so that [`common`] can let one cluster run at a time.

mod admin;
mod again;
mod api;
mod bench;
mod binary;
mod blows;
mod common;
mod damage;
mod disk;
mod durability;
mod executors;
mod expiry;
mod failover;
mod failures;
mod folder;
mod gaps;
mod histories;
mod hostile;
mod ledger;
mod load;
mod memory;
mod mounts;
mod nodes;
mod packages;
mod passing;
mod rebuild;
mod refill;
mod restart;
mod retries;
mod routers;
mod shared_keys;
mod slow;
mod stale;
mod start;
mod takeover;

#[path = "../../examples/load_packages/http.rs"]
mod http;
#[path = "../../examples/load_packages/phases.rs"]
mod phases;
#[path = "../../examples/load_packages/stanzas.rs"]
mod stanzas;
