//! Entries: records, cuts, states and resets.

use super::{Fields, FormatError, put_node, put_position};
use kv_proto::{
    cluster_map::Configuration,
    effect::Effect,
    ids::{ClientId, DiskId, Epoch, HistoryId, Lsn, Member, OperationId, PartitionId},
    replication::{Position, Record},
};
use std::sync::Arc;

/// Bytes of an entry's header.
pub const ENTRY_HEADER_BYTES: usize = 32;
const OPERATION_ID_BYTES: usize = 32;
/// Most members that a configuration on disk can have: more are no configuration of this program.
const MAX_MEMBERS: usize = 64;

/// What an entry says of its partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The next record. With `copy` it stood in an older segment before, and voids nothing.
    Record {
        /// The record.
        record: Record,
        /// Whether it was copied from an older segment.
        copy: bool,
        /// Whether its epoch is the one that its partition was in when it was written: then no configuration is missing
        /// before it. Records of older epochs come from who is ahead.
        current: bool,
    },
    /// Everything before this entry with this LSN or a greater one is void.
    Cut {
        /// The LSN of the first record that is void.
        from: Lsn,
    },
    /// The partition is in this configuration, and its records up to this one stood in the log before this entry, or stand
    /// behind it as copies.
    State {
        /// The configuration.
        configuration: Configuration,
        /// The last record before this entry; in epoch 0 if who wrote it did not know its epoch.
        last: Position,
        /// What stood before was found damaged, and stays so until a reset.
        faulty: bool,
    },
    /// Everything before this entry is void; the table is the one of a checkpoint that was put in place up to this position.
    Reset {
        /// The configuration; the checkpoint is of its history.
        configuration: Configuration,
        /// The position that the log goes on from.
        base: Position,
    },
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The partition.
    pub partition: PartitionId,
    /// What was known to be committed when the entry was written.
    pub committed: Lsn,
    /// What it says.
    pub content: Content,
}

const KIND_RECORD: u8 = 1;
const KIND_CUT: u8 = 2;
const KIND_STATE: u8 = 3;
const KIND_RESET: u8 = 4;
const FLAG_COPY: u8 = 1;
const FLAG_OPERATION_ID: u8 = 2;
const FLAG_FAULTY: u8 = 4;
const FLAG_CURRENT: u8 = 8;

fn begin_entry(out: &mut Vec<u8>, kind: u8, flags: u8, partition: PartitionId, at: Position, committed: Lsn) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&partition.0.to_le_bytes());
    put_position(out, at);
    out.extend_from_slice(&committed.0.to_le_bytes());
    start
}

fn end_entry(out: &mut [u8], start: usize) {
    let bytes = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&bytes.to_le_bytes());
}

/// Appends a record as an entry; `epoch` is the one that the partition is in.
pub fn put_record(out: &mut Vec<u8>, partition: PartitionId, record: &Record, committed: Lsn, epoch: Epoch) {
    put_record_with(out, partition, record, committed, if record.position.epoch == epoch { FLAG_CURRENT } else { 0 });
}

/// Appends a record that stands in an older segment as an entry.
pub fn put_copy(out: &mut Vec<u8>, partition: PartitionId, record: &Record, committed: Lsn) {
    put_record_with(out, partition, record, committed, FLAG_COPY);
}

fn put_record_with(out: &mut Vec<u8>, partition: PartitionId, record: &Record, committed: Lsn, flags: u8) {
    let flags = flags | if record.operation_id.is_some() { FLAG_OPERATION_ID } else { 0 };
    let start = begin_entry(out, KIND_RECORD, flags, partition, record.position, committed);
    if let Some(id) = &record.operation_id {
        out.extend_from_slice(&id.client.0.to_le_bytes());
        out.extend_from_slice(&id.sequence.to_le_bytes());
        out.extend_from_slice(&id.known_lsn.0.to_le_bytes());
    }
    out.extend_from_slice(&record.payload);
    end_entry(out, start);
}

/// Bytes that a record takes as an entry.
#[must_use]
pub fn record_bytes(record: &Record) -> usize {
    ENTRY_HEADER_BYTES + record.operation_id.map_or(0, |_| OPERATION_ID_BYTES) + record.payload.len()
}

/// Appends a cut as an entry.
pub fn put_cut(out: &mut Vec<u8>, partition: PartitionId, from: Lsn, committed: Lsn) {
    let at = Position { epoch: Epoch(0), lsn: from };
    let start = begin_entry(out, KIND_CUT, 0, partition, at, committed);
    end_entry(out, start);
}

/// Appends the state of a partition as an entry.
pub fn put_state(
    out: &mut Vec<u8>,
    partition: PartitionId,
    configuration: &Configuration,
    last: Position,
    committed: Lsn,
    faulty: bool,
) {
    let flags = if faulty { FLAG_FAULTY } else { 0 };
    let start = begin_entry(out, KIND_STATE, flags, partition, last, committed);
    put_configuration(out, configuration);
    end_entry(out, start);
}

/// Appends a reset as an entry.
pub fn put_reset(out: &mut Vec<u8>, partition: PartitionId, configuration: &Configuration, base: Position) {
    let start = begin_entry(out, KIND_RESET, 0, partition, base, base.lsn);
    put_configuration(out, configuration);
    end_entry(out, start);
}

pub(crate) fn put_configuration(out: &mut Vec<u8>, configuration: &Configuration) {
    out.extend_from_slice(&configuration.epoch.0.to_le_bytes());
    out.extend_from_slice(&configuration.history.0.to_le_bytes());
    let members = configuration.members().count();
    assert!(members <= MAX_MEMBERS, "a configuration of {members} members");
    out.extend_from_slice(&(members as u16).to_le_bytes());
    for member in configuration.members() {
        out.extend_from_slice(&member.disk.0.to_le_bytes());
        put_node(out, member.node);
    }
}

pub(crate) fn read_configuration(fields: &mut Fields<'_>) -> Result<Configuration, FormatError> {
    let (epoch, history) = (Epoch(fields.count()?), HistoryId(fields.u32()?));
    let count = usize::from(fields.u16()?);
    if count == 0 || count > MAX_MEMBERS {
        return Err(FormatError::Damaged("no configuration"));
    }
    let mut member = || Ok(Member { disk: DiskId(fields.u128()?), node: fields.node()? });
    let leader = member()?;
    let in_sync = (1..count).map(|_| member()).collect::<Result<_, FormatError>>()?;
    Ok(Configuration { epoch, history, leader, in_sync })
}

/// Takes the next entry off the entries of a batch.
///
/// # Errors
/// When it is none; a batch with an intact checksum has none such, unless another version wrote it.
pub fn read_entry(body: &mut &[u8]) -> Result<Entry, FormatError> {
    let bytes = Fields(body).u32()? as usize;
    let (entry, rest) = body.split_at_checked(bytes).ok_or(FormatError::Damaged("an entry ends too early"))?;
    let mut fields = Fields(entry);
    fields.take(4)?;
    let [kind, flags] = fields.array()?;
    let partition = PartitionId(fields.u16()?);
    let (position, committed) = (fields.position()?, Lsn(fields.count()?));
    let known = match kind {
        KIND_RECORD => FLAG_COPY | FLAG_OPERATION_ID | FLAG_CURRENT,
        KIND_STATE => FLAG_FAULTY,
        _ => 0,
    };
    if flags & !known != 0 {
        return Err(FormatError::Damaged("an entry with unknown flags"));
    }
    if position.lsn == Lsn(0) && matches!(kind, KIND_RECORD | KIND_CUT) {
        return Err(FormatError::Damaged("a record that cannot be"));
    }
    let content = match kind {
        KIND_RECORD => {
            let operation_id = if flags & FLAG_OPERATION_ID != 0 {
                let client = ClientId(fields.u128()?);
                Some(OperationId { client, sequence: fields.u64()?, known_lsn: Lsn(fields.u64()?) })
            } else {
                None
            };
            if Effect::decode(fields.0).is_err() {
                return Err(FormatError::Damaged("a record without an effect"));
            }
            let payload = Arc::from(fields.take(fields.0.len())?);
            let (copy, current) = (flags & FLAG_COPY != 0, flags & FLAG_CURRENT != 0);
            Content::Record { record: Record { position, operation_id, payload }, copy, current }
        }
        KIND_CUT => Content::Cut { from: position.lsn },
        KIND_STATE => {
            let faulty = flags & FLAG_FAULTY != 0;
            Content::State { configuration: read_configuration(&mut fields)?, last: position, faulty }
        }
        KIND_RESET => Content::Reset { configuration: read_configuration(&mut fields)?, base: position },
        _ => return Err(FormatError::Damaged("an entry of an unknown kind")),
    };
    if !fields.0.is_empty() {
        return Err(FormatError::Damaged("an entry is longer than what it says"));
    }
    *body = rest;
    Ok(Entry { partition, committed, content })
}
