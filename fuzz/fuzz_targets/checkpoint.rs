//! What a disk gives back for a checkpoint: any bytes, and frames with the right checksums around any bytes.

#![no_main]

use kv_proto::ids::{DiskId, NodeId};
use kv_storage::{checkpoint, log::format::Identity};
use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    Bytes(&'a [u8]),
    /// A header, or none, and chunks of a kind each.
    Frames(Option<&'a [u8]>, Vec<(u8, &'a [u8])>),
}

fuzz_target!(|input: Input| {
    let identity = Identity { node: NodeId::new("n").expect("a name"), disk: DiskId(1) };
    let bytes = match input {
        Input::Bytes(bytes) => bytes.to_vec(),
        Input::Frames(header, chunks) => checkpoint::with_checksums(&identity, header, &chunks),
    };
    let _ = checkpoint::read_only_header(&mut &bytes[..], &identity);
    if let Ok((header, table, footer)) = checkpoint::read(&mut &bytes[..], &identity) {
        assert!(table.keys() <= footer.entries && footer.end >= header.start.lsn);
    }
});
