//! What a leader sends of its table.

#![no_main]

use kv_proto::ids::Lsn;
use kv_storage::{
    copy::{CopyWalk, digest, take_part},
    operations::Operations,
    table::Table,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|parts: Vec<&[u8]>| {
    let (mut table, mut operations) = (Table::default(), Operations::default());
    for part in parts {
        let _ = take_part(part, &mut table, &mut operations);
    }
    let (mut walk, mut done) = (CopyWalk::default(), false);
    let (mut copy, mut of) = (Table::default(), Operations::unknown_up_to(Lsn(0)));
    while !done {
        let part;
        (part, done) = walk.next_part(&table, &operations, 1000);
        take_part(&part, &mut copy, &mut of).expect("what was taken can be sent again");
    }
    assert_eq!((digest(&copy, &of), copy.keys()), (digest(&table, &operations), table.keys()));
});
