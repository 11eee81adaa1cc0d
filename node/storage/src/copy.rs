//! A partition's table and operations as another replica is sent them: part by part, while records go on being applied.
//!
//! A part is a byte that says what it has, 1 entries or 2 operations, and these as a chunk of a checkpoint has them.
//!
//! All parts, taken in their order, and then the records since before the first, by [`Table::put_if_newer`] and
//! [`Table::remove_if_older`], make table and operations as they were when the last part was made; [`digest`] says so.
//!
//! # Invariants
//! * Bytes from another node never panic, and nothing is allocated for a length that was not checked.

use crate::{
    checkpoint::{KIND_ENTRIES, KIND_OPERATIONS, put_entry, read_entry},
    log::format::{Fields, FormatError},
    operations::Operations,
    table::{Table, Walk},
};
use kv_proto::ids::Lsn;

/// Where the making of a copy is. Operations that come while the table is walked are taken before it goes on.
#[derive(Debug, Default)]
pub struct CopyWalk {
    /// Up to here operations were taken.
    operations: Lsn,
    table: Walk,
}

impl CopyWalk {
    /// The next part, of about `max_bytes` or one entry, and whether it is the last.
    pub fn next_part(&mut self, table: &Table, operations: &Operations, max_bytes: usize) -> (Vec<u8>, bool) {
        let mut part = vec![KIND_OPERATIONS];
        if let Some(after) = operations.next_chunk(self.operations, max_bytes, &mut part) {
            self.operations = after;
            return (part, false);
        }
        part[0] = KIND_ENTRIES;
        let done = self.table.next_chunk(table, max_bytes, &mut |key, entry| put_entry(&mut part, key, entry));
        (part, done)
    }
}

/// Takes what [`CopyWalk::next_part`] gave.
///
/// # Errors
/// When it is none, or not the next; some of it may have been taken.
pub fn take_part(part: &[u8], table: &mut Table, operations: &mut Operations) -> Result<(), FormatError> {
    let mut fields = Fields(part);
    match fields.array()? {
        [KIND_ENTRIES] => {
            while !fields.0.is_empty() {
                let (key, entry) = read_entry(&mut fields)?;
                table.put_if_newer(key, entry);
            }
            Ok(())
        }
        [KIND_OPERATIONS] => operations.take_chunk(fields.0),
        _ => Err(FormatError::Damaged("a part of a copy of an unknown kind")),
    }
}

/// Where both tables and operations are equal, so are these.
#[must_use]
pub fn digest(table: &Table, operations: &Operations) -> u64 {
    table.digest().wrapping_add(operations.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::{
        effect::{Effect, Expiry, Unchanged},
        ids::{ClientId, Epoch, OperationId},
        replication::{Position, Record},
    };
    use proptest::prelude::*;

    /// A put, a delete or a refusal of a key, with an operation id or without.
    type Write = (u8, u8, bool);

    fn apply(table: &mut Table, operations: &mut Operations, lsn: u64, (key, kind, has_id): Write) {
        let (key, value) = ([key], vec![7; usize::from(kind) * 9]);
        let effect = match kind % 4 {
            0 => Effect::Delete { key: &key },
            1 => Effect::Outcome(Unchanged::Missing),
            _ => Effect::Put { key: &key, content_type: "t", value: &value, expires: Expiry::from_ms(lsn) },
        };
        let position = Position { epoch: Epoch(1), lsn: Lsn(lsn) };
        let id = OperationId { client: ClientId(1), sequence: lsn, known_lsn: Lsn(0) };
        let record = Record { position, operation_id: has_id.then_some(id), payload: effect.encode().into() };
        operations.apply(&record, &effect);
        match effect {
            Effect::Put { key, content_type, value, expires } => {
                table.put_if_newer(key, crate::table::Entry { lsn: Lsn(lsn), expires, content_type, value });
            }
            Effect::Delete { key } => table.remove_if_older(Lsn(lsn), key),
            Effect::Outcome(_) | Effect::Nothing => {}
        }
    }

    #[test]
    fn golden_bytes() {
        let (mut table, mut operations) = (Table::default(), Operations::default());
        apply(&mut table, &mut operations, 5, (b'k', 2, true));
        let mut walk = CopyWalk::default();
        let parts = [(); 2].map(|()| walk.next_part(&table, &operations, 100));
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let value = "07".repeat(18);
        let client = "01000000000000000000000000000000";
        assert_eq!(hex(&parts[0].0), format!("020000000000000000{client}0500000000000000050000000000000000"));
        assert_eq!(hex(&parts[1].0), format!("0105000000000000000500000000000000010001120000006b74{value}"));
        assert_eq!(parts.map(|(_, last)| last), [false, true]);
    }

    #[test]
    fn of_nothing_there_is_one_part() {
        let (part, last) = CopyWalk::default().next_part(&Table::default(), &Operations::default(), 100);
        assert_eq!((&part[..], last), (&[KIND_ENTRIES][..], true));
        take_part(&part, &mut Table::default(), &mut Operations::default()).expect("a part");
    }

    #[test]
    fn what_is_no_part_is_refused() {
        let (mut table, mut operations) = (Table::default(), Operations::default());
        apply(&mut table, &mut operations, 5, (b'k', 2, true));
        let mut walk = CopyWalk::default();
        let parts = [(); 2].map(|()| walk.next_part(&table, &operations, 100).0);
        let take = |part: &[u8]| take_part(part, &mut Table::default(), &mut Operations::default());
        for part in &parts {
            take(part).expect("a part");
            for end in (0..part.len()).filter(|end| ![1, 9].contains(end)) {
                assert!(take(&part[..end]).is_err(), "{end} bytes");
            }
        }
        assert!(take(&[&[3], &parts[1][1..]].concat()).is_err(), "an unknown kind");
        let (mut table, mut operations) = (Table::default(), Operations::default());
        take_part(&parts[0], &mut table, &mut operations).expect("a part");
        assert!(take_part(&parts[0], &mut table, &mut operations).is_err(), "it is not the next");
    }

    proptest! {
        #[test]
        fn parts_and_the_records_since_make_what_is_there_at_the_end(
            writes in prop::collection::vec((0..20u8, any::<u8>(), any::<bool>()), 0..60),
            start in 0..60usize,
            max_bytes in 1..400usize,
        ) {
            let (mut table, mut operations) = (Table::default(), Operations::default());
            let mut writes_of = (1..).zip(&writes);
            for (lsn, write) in writes_of.by_ref().take(start) {
                apply(&mut table, &mut operations, lsn, *write);
            }
            let (mut walk, mut end) = (CopyWalk::default(), start.min(writes.len()));
            let (mut copy, mut of) = (Table::default(), Operations::default());
            loop {
                let (part, last) = walk.next_part(&table, &operations, max_bytes);
                take_part(&part, &mut copy, &mut of).expect("a part");
                if last {
                    break;
                }
                if let Some((lsn, write)) = writes_of.next() {
                    apply(&mut table, &mut operations, lsn, *write);
                    end += 1;
                }
            }
            for (lsn, write) in (1..).zip(&writes).take(end).skip(start) {
                apply(&mut copy, &mut of, lsn, *write);
            }
            prop_assert_eq!(digest(&copy, &of), digest(&table, &operations));
            prop_assert_eq!((copy.keys(), of.count()), (table.keys(), operations.count()));
        }

        #[test]
        fn garbage_never_panics(kind in 0..4u8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = take_part(&[&[kind], &bytes[..]].concat(), &mut Table::default(), &mut Operations::default());
        }
    }
}
