//! The native client of the key-value store.
//!
//! ```no_run
//! # async fn example() -> Result<(), kv_client::Error> {
//! use kv_client::{Client, PutOptions, proto::request::Condition};
//!
//! let client = Client::builder().seed("kv://127.0.0.1:5001").build()?;
//! let written = client.put(b"user:1", b"Ada").await?;
//! let entry = client.get(b"user:1").await?.expect("just written");
//! assert_eq!((entry.value.as_ref(), entry.version), (b"Ada".as_slice(), written.version));
//!
//! // Only if nobody else has written since:
//! let options = PutOptions { condition: Condition::Version(written.version), ..PutOptions::default() };
//! if let Err(error) = client.put_with(b"user:1", b"Ada Lovelace", options).await {
//!     eprintln!("{error} ({}): {}; again? {}", error.code(), error.outcome(), error.is_retryable());
//! }
//! // Gone by itself after a minute:
//! let options = PutOptions { ttl: Some(std::time::Duration::from_secs(60)), ..PutOptions::default() };
//! client.put_with(b"session:1", b"Ada", options).await?;
//! client.delete(b"user:1").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What happens to a request
//!
//! 1. The key's partition, its leader and the executor there that owns it are looked up in the routing table. A
//!    client without a map asks its seeds first.
//! 2. The request is appended to the send buffer of the one connection to that executor, which is made if there is
//!    none. Requests of all callers leave together, and come back in any order.
//! 3. A node that does not lead the partition says so, and says who does as far as it knows. The table learns that
//!    and the request goes there.
//!
//! # What an error means
//!
//! [`Error::outcome`] is the promise: after [`Outcome::NotApplied`](proto::error_code::Outcome) the write was not
//! applied and never will be; after `Unknown` it may have been, or may be yet. A write is unknown when it was
//! sent and no answer came: its deadline passed, or its connection broke. Every write has an operation id, by which the
//! partition knows it again: so the client asks again with the same id while the deadline lasts, is told what became of
//! the write, and nothing is applied twice. What else may help within the deadline it tries by itself too (the table in
//! `retry.rs`), so that an error that [`Error::is_retryable`] is worth trying again only after a while.
//!
//! A write that a caller repeats is a new one: after an unknown outcome that may apply it twice.
//!
//! A node that refuses connections costs an error at once, not the deadline. A node that is silent is noticed by a
//! heartbeat, and its connection given up.
//!
//! # Two faces
//!
//! [`Client`] is for everyone. [`Pipeline`] is the connection without the comfort: no map, no retries, no future
//! per request, no operation ids; for load generators and other hot paths.
//!
//! # What is not here
//!
//! HTTP; TLS; batches, scans and watches.

mod address;
mod answer;
mod builder;
mod client;
mod connection;
mod error;
mod link;
mod operation_ids;
mod pipeline;
mod refresh;
mod retry;
mod routing_table;
mod socket;
mod waiting;

pub use address::Address;
pub use answer::{Entry, Written};
pub use builder::ClientBuilder;
pub use client::{Client, PutOptions};
pub use error::Error;
pub use kv_proto as proto;
pub use operation_ids::OperationIds;
pub use pipeline::Pipeline;
pub use socket::{ConnectOptions, read_now};
