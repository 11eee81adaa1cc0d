//! What a disk gives back for a checkpoint: any bytes, and frames with the right checksums around any bytes.

#![no_main]

use kv_proto::ids::{DiskId, Lsn, NodeId};
use kv_storage::{
    checkpoint::{self, Checkpoint},
    log::format::Identity,
    operations::Operations,
};
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
    if let Ok(Checkpoint { header, table, operations, footer }) = checkpoint::read(&mut &bytes[..], &identity) {
        assert!(table.keys() <= footer.entries && footer.end >= header.start.lsn);
        let (mut chunk, mut copy) = (Vec::new(), Operations::default());
        if operations.next_chunk(Lsn(0), usize::MAX, &mut chunk).is_some() {
            copy.take_chunk(&chunk).expect("what was read can be read again");
        }
        assert_eq!((copy.count(), copy.digest()), (operations.count(), operations.digest()));
    }
});
