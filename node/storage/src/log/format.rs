//! The bytes of the log: segment headers, batches, entries. `docs/wal.md` has them as tables.
//!
//! # Invariants
//! * Bytes from a disk never panic, and nothing is allocated for a length that was not checked.
//! * Every checksum is seeded with the disk, the stream and the place for which the bytes were written, so that what is
//!   left in a recycled segment, or was copied from elsewhere, never looks valid.
//! * No block within a batch begins as a batch does: what clients have written there is never taken for one, be it in
//!   what is left of a torn batch or of an earlier use of the segment.
//! * The header of a batch has a checksum of its own: a header that holds tells a batch that was begun, and what is left of
//!   others costs no more than looking at theirs.

mod entry;

pub use entry::{
    Content, ENTRY_HEADER_BYTES, Entry, put_copy, put_cut, put_record, put_reset, put_state, read_entry, record_bytes,
};
pub(crate) use entry::{put_configuration, read_configuration};

use super::{SegmentId, StreamId};
use kv_proto::{
    ids::{ClusterId, DiskId, Epoch, Lsn, NodeId},
    replication::Position,
};
use std::{borrow::Cow, collections::BTreeSet};

/// Version of everything that this module writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of a block: batches begin at multiples of it. Of 512 and 4096 the one that every disk can write.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes of a batch's header.
pub const BATCH_HEADER_BYTES: usize = 32;

const SEGMENT_MAGIC: [u8; 8] = *b"kv-wal\r\n";
const BATCH_MAGIC: [u8; 4] = *b"kvB\x01";
/// Epochs and LSNs beyond this one cannot be: counting on from there would overflow.
const MAX_COUNT: u64 = u64::MAX >> 1;

/// Whose log it is; every checksum depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// The disk that was made together with the log.
    pub disk: DiskId,
}

/// What was wrong with bytes that should be part of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// They are not what was written there.
    #[error("not what was written there: {0}")]
    Damaged(&'static str),
    /// Another version of this program wrote them.
    #[error("log format {0}, and this version of kv knows only format {FORMAT_VERSION}: start it with a newer kv")]
    OtherFormat(u32),
    /// They are the header of another segment of this disk.
    #[error("the header of segment {0}")]
    OtherSegment(SegmentId),
    /// They belong to another disk.
    #[error("it belongs to node {node} with disk {disk}")]
    OtherDisk {
        /// The node that wrote it.
        node: NodeId,
        /// Its disk.
        disk: DiskId,
    },
}

/// Reads fields one after another; every read is checked.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, bytes: usize) -> Result<&'a [u8], FormatError> {
        let (field, rest) = self.0.split_at_checked(bytes).ok_or(FormatError::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(field)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        Ok(self.take(N)?.try_into().expect("as many bytes as were asked for"))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128, FormatError> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn node(&mut self) -> Result<NodeId, FormatError> {
        let length = self.array::<1>()?[0];
        let text = std::str::from_utf8(self.take(usize::from(length))?);
        text.ok().and_then(|t| NodeId::new(t).ok()).ok_or(FormatError::Damaged("no name of a node"))
    }

    pub(crate) fn count(&mut self) -> Result<u64, FormatError> {
        let count = self.u64()?;
        if count > MAX_COUNT { Err(FormatError::Damaged("an epoch or LSN that cannot be")) } else { Ok(count) }
    }

    pub(crate) fn position(&mut self) -> Result<Position, FormatError> {
        Ok(Position { epoch: Epoch(self.count()?), lsn: Lsn(self.count()?) })
    }
}

pub(crate) fn put_node(out: &mut Vec<u8>, node: NodeId) {
    out.push(node.as_str().len() as u8);
    out.extend_from_slice(node.as_str().as_bytes());
}

pub(crate) fn put_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(&position.epoch.0.to_le_bytes());
    out.extend_from_slice(&position.lsn.0.to_le_bytes());
}

/// Where in the log something stands; the seed of its checksum.
fn seed(identity: &Identity, id: SegmentId, offset: u64) -> u32 {
    let mut place = [0; 48];
    place[..16].copy_from_slice(&identity.disk.0.to_le_bytes());
    place[16..24].copy_from_slice(&id.stream.generation.to_le_bytes());
    place[24..32].copy_from_slice(&u64::from(id.stream.executor).to_le_bytes());
    place[32..40].copy_from_slice(&id.number.to_le_bytes());
    place[40..].copy_from_slice(&offset.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), identity.node.as_str().as_bytes())
}

/// The first block of a segment of `bytes` bytes, whose first batch has the number `first_batch`.
#[must_use]
pub fn segment_header(cluster: ClusterId, identity: &Identity, id: SegmentId, bytes: u64, first_batch: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(BLOCK_BYTES);
    out.extend_from_slice(&SEGMENT_MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    // A version of its own checksum, so that a bit that flipped is not taken for a program of the future.
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out.extend_from_slice(&cluster.0.to_le_bytes());
    out.extend_from_slice(&identity.disk.0.to_le_bytes());
    out.extend_from_slice(&id.stream.generation.to_le_bytes());
    out.extend_from_slice(&u64::from(id.stream.executor).to_le_bytes());
    out.extend_from_slice(&id.number.to_le_bytes());
    out.extend_from_slice(&bytes.to_le_bytes());
    out.extend_from_slice(&first_batch.to_le_bytes());
    put_node(&mut out, identity.node);
    out.resize(BLOCK_BYTES - 4, 0);
    let checksum = crc32c::crc32c_append(seed(identity, id, 0), &out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// Checks the first block of a segment, which should be that of `id`, and says the number of its first batch.
///
/// # Errors
/// Says what is wrong; another version's or another disk's header is told from a damaged one.
pub fn check_segment_header(block: &[u8], identity: &Identity, id: SegmentId) -> Result<u64, FormatError> {
    let mut fields = Fields(block);
    if fields.array()? != SEGMENT_MAGIC {
        return Err(FormatError::Damaged("no header of a segment"));
    }
    let version = fields.u32()?;
    if fields.u32()? != crc32c::crc32c(&block[..12]) {
        return Err(FormatError::Damaged("the checksum of its version does not match"));
    }
    if version != FORMAT_VERSION {
        return Err(FormatError::OtherFormat(version));
    }
    let _cluster = fields.u128()?;
    let disk = DiskId(fields.u128()?);
    let [generation, executor, number, _bytes] = [fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?];
    let first_batch = fields.count()?;
    let node = fields.node()?;
    let (covered, checksum) = block
        .get(..BLOCK_BYTES)
        .and_then(|block| block.split_last_chunk::<4>())
        .ok_or(FormatError::Damaged("it ends too early"))?;
    // By what it says of itself: whose it is counts only if that was written so.
    let executor = u16::try_from(executor).map_err(|_| FormatError::Damaged("no executor has this number"))?;
    let said = SegmentId { stream: StreamId { generation, executor }, number };
    if crc32c::crc32c_append(seed(&Identity { node, disk }, said, 0), covered) != u32::from_le_bytes(*checksum) {
        return Err(FormatError::Damaged("the checksum of its header does not match"));
    }
    if disk != identity.disk || node != identity.node {
        return Err(FormatError::OtherDisk { node, disk });
    }
    if said != id {
        return Err(FormatError::OtherSegment(said));
    }
    Ok(first_batch)
}

/// Where the blocks begin within a batch of which `bytes` bytes are not padding, other than the first.
fn inner_blocks(bytes: usize) -> impl Iterator<Item = usize> {
    // A block of which fewer bytes count begins with zeros of the padding, and so not as a batch.
    (BLOCK_BYTES..=bytes.saturating_sub(BATCH_MAGIC.len())).step_by(BLOCK_BYTES)
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes"))
}

/// What the beginnings of all inner blocks are combined with (xor), so that none looks like the beginning of a batch: 0 if
/// none does, and else the least number that does it.
fn mask_of(batch: &[u8]) -> u32 {
    let magic = u32::from_le_bytes(BATCH_MAGIC);
    if inner_blocks(batch.len()).all(|at| word(&batch[at..]) != magic) {
        return 0;
    }
    let forbidden: BTreeSet<u32> = inner_blocks(batch.len()).map(|at| word(&batch[at..]) ^ magic).collect();
    (1..).find(|mask| !forbidden.contains(mask)).expect("there are fewer blocks than masks")
}

/// Combines the beginnings of inner blocks with a mask; `bytes` begin at `at` of a batch that has `whole` bytes.
fn apply_mask(bytes: &mut [u8], at: usize, whole: usize, mask: u32) {
    for block in inner_blocks(whole) {
        let masked = word(&bytes[block - at..]) ^ mask;
        bytes[block - at..block - at + 4].copy_from_slice(&masked.to_le_bytes());
    }
}

/// Completes a batch: `out` has room for the header at `start` and the entries behind it; the header is written, and zeros
/// up to the next block.
pub fn seal_batch(
    out: &mut Vec<u8>,
    start: usize,
    identity: &Identity,
    id: SegmentId,
    offset: u64,
    number: u64,
    entries: u32,
) {
    let (batch, seed) = (&mut out[start..], seed(identity, id, offset));
    let body_bytes = u32::try_from(batch.len() - BATCH_HEADER_BYTES).expect("a batch fits into a segment");
    let (mask, whole) = (mask_of(batch), batch.len());
    if mask != 0 {
        apply_mask(batch, 0, whole, mask);
    }
    let (header, body) = batch.split_at_mut(BATCH_HEADER_BYTES);
    header[..4].copy_from_slice(&BATCH_MAGIC);
    header[8..16].copy_from_slice(&number.to_le_bytes());
    header[16..20].copy_from_slice(&body_bytes.to_le_bytes());
    header[20..24].copy_from_slice(&entries.to_le_bytes());
    header[24..28].copy_from_slice(&mask.to_le_bytes());
    header[28..32].copy_from_slice(&crc32c::crc32c_append(seed, body).to_le_bytes());
    let checksum = crc32c::crc32c_append(seed, &header[8..]);
    header[4..8].copy_from_slice(&checksum.to_le_bytes());
    out.resize(start + (out.len() - start).next_multiple_of(BLOCK_BYTES), 0);
}

/// A batch as it is found in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Grows by one from batch to batch of a stream; the first has 1.
    pub number: u64,
    /// How many entries it has.
    pub entries: u32,
    /// The entries, one after another.
    pub body: Cow<'a, [u8]>,
}

/// What stands at a block of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Nothing that was written there as the beginning of a batch.
    Nothing,
    /// A batch was begun there, and is not whole.
    Torn {
        /// Its number.
        number: u64,
    },
    /// An intact batch.
    Batch(Batch<'a>),
}

fn blocks_bytes(body_bytes: usize) -> u64 {
    (BATCH_HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES) as u64
}

/// How long the batch is that begins with this header, in bytes, if the header is intact.
#[must_use]
pub fn batch_bytes(header: &[u8]) -> usize {
    let body = header.get(16..20).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    BATCH_HEADER_BYTES + body as usize
}

/// What begins with `bytes`, which stand at `offset` of a segment, and how many bytes on the next batch may begin.
#[must_use]
pub fn find_batch<'a>(bytes: &'a [u8], identity: &Identity, id: SegmentId, offset: u64) -> (Found<'a>, u64) {
    let nothing = (Found::Nothing, BLOCK_BYTES as u64);
    let Some((header, rest)) = bytes.split_at_checked(BATCH_HEADER_BYTES) else { return nothing };
    if header[..4] != BATCH_MAGIC {
        return nothing;
    }
    let seed = seed(identity, id, offset);
    if crc32c::crc32c_append(seed, &header[8..]) != word(&header[4..]) {
        return nothing;
    }
    let number = u64::from_le_bytes(header[8..16].try_into().expect("8 bytes"));
    let [body_bytes, entries, mask, checksum] = [16, 20, 24, 28].map(|at| word(&header[at..]));
    let whole = BATCH_HEADER_BYTES + body_bytes as usize;
    let body = rest.get(..body_bytes as usize).filter(|body| crc32c::crc32c_append(seed, body) == checksum);
    let Some(body) = body.filter(|_| number <= MAX_COUNT) else {
        return (Found::Torn { number: number.min(MAX_COUNT) }, blocks_bytes(body_bytes as usize));
    };
    let mut body = Cow::Borrowed(body);
    if mask != 0 {
        apply_mask(body.to_mut(), BATCH_HEADER_BYTES, whole, mask);
    }
    (Found::Batch(Batch { number, entries, body }), blocks_bytes(body_bytes as usize))
}

/// The batch that begins with `bytes`, which stand at `offset` of a segment; `None` if there is no intact one.
#[must_use]
pub fn read_batch<'a>(bytes: &'a [u8], identity: &Identity, id: SegmentId, offset: u64) -> Option<Batch<'a>> {
    match find_batch(bytes, identity, id, offset).0 {
        Found::Batch(batch) => Some(batch),
        Found::Torn { .. } | Found::Nothing => None,
    }
}

/// The names of segments: `GENERATION-EXECUTOR-NUMBER.log`, zero-padded decimals.
#[must_use]
pub fn segment_name(id: SegmentId) -> String {
    format!("{:010}-{:04}-{:010}.log", id.stream.generation, id.stream.executor, id.number)
}

/// The segment that has this name.
#[must_use]
pub fn segment_of_name(name: &str) -> Option<SegmentId> {
    let mut parts = name.strip_suffix(".log")?.splitn(3, '-');
    let (generation, executor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let id = SegmentId { stream: StreamId { generation, executor }, number: parts.next()?.parse().ok()? };
    (segment_name(id) == name).then_some(id)
}

#[cfg(test)]
mod tests;
