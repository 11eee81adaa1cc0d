//! The example `load_packages` on a sample of its real input: loaded, read back by both ways, half deleted.

use crate::common::Cluster;
use crate::{
    phases::{Load, Phase},
    stanzas,
};
use std::sync::Arc;

const SAMPLE: &str = include_str!("../data/packages-sample.txt");

#[test]
fn debian_packages_survive_the_cluster_byte_for_byte() {
    let items = stanzas::items(SAMPLE).expect("a package index");
    let (count, bytes) = (items.len(), items.iter().map(|i| i.stanza.len()).sum::<usize>());
    assert!(count >= 200 && items.iter().any(|i| i.stanza.len() > 70_000), "the sample has long stanzas too");
    let cluster = Cluster::start(&[]);
    let load = Arc::new(Load::new(items, &cluster.url, 8).expect("a URL"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for phase in Phase::ALL {
        let done = runtime.block_on(load.clone().run(phase)).expect("every answer is right");
        println!("{done}");
        let half = phase == Phase::DeleteHalf;
        assert_eq!(done.keys, if half { count.div_ceil(2) } else { count });
        assert!(half || done.bytes == bytes);
    }
}
