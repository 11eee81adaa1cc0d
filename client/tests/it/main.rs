//! The client against nodes that do what each test tells them to, over real sockets.
//!
//! Nothing here depends on how fast the machine is: deadlines that must not pass are a minute long, those that
//! must are short, and every test as a whole is bounded by [`bounded`].

mod failures;
mod fake;
mod operation_ids;
mod pipeline;
mod requests;

use fake::FakeNode;
use kv_client::{Client, ClientBuilder};
use std::time::Duration;

/// A deadline that no test waits for.
const FAR: Duration = Duration::from_secs(60);

/// Fails a test that hangs.
async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs")
}

/// A client without haste: nothing ends by a deadline or a heartbeat unless the test shortens them.
fn patient() -> ClientBuilder {
    Client::builder().deadline(FAR).connect_timeout(FAR).heartbeat(FAR, FAR)
}

/// A patient client of a cluster whose only node leads its only partition.
fn client_of(node: &FakeNode) -> ClientBuilder {
    let map = fake::map(&[(node.id.as_str(), &node.address)], &[node.id.as_str()]);
    node.set_view(&map, &[(0, 0)]);
    patient().map(map)
}
