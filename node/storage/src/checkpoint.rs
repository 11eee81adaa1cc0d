//! The bytes of a checkpoint: a partition's table as it was while records went on being applied.
//!
//! ```text
//! header   magic, version, cluster, disk, partition, configuration, start position; checksum
//! chunk…   kind 1: entries, each with the LSN of the record that wrote it; kind 2: operations, in their order
//! footer   kind 255: end LSN, entries in all, digests of the table and of the operations at the end
//! ```
//!
//! Every entry that was there all the time from start to end is in it; what changed meanwhile may be or not. Brought up by
//! the records from start to end it is the table as it was at the end, which the digest proves. The same holds for the
//! operations. Version 1 has none: of operations before its start nothing is known.
//!
//! # Invariants
//! * Bytes from a disk never panic, and nothing is allocated for a length that was not checked.
//! * Checksums are seeded with disk, partition, start and the number of the chunk.

use crate::{
    log::format::{Fields, FormatError, Identity, put_configuration, put_node, put_position, read_configuration},
    operations::Operations,
    table::{Entry, Table},
};
use kv_proto::{
    cluster_map::Configuration,
    effect::Expiry,
    ids::{ClusterId, DiskId, Lsn, PartitionId},
    limits::{HIGHEST_MAX_VALUE_BYTES, MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES},
    replication::Position,
};
use std::io::{self, Read};

const MAGIC: [u8; 8] = *b"kv-ckpt\n";
const FORMAT_VERSION: u32 = 2;
/// The version before operations were kept.
const WITHOUT_OPERATIONS: u32 = 1;
const KIND_HEADER: u8 = 0;
pub(crate) const KIND_ENTRIES: u8 = 1;
pub(crate) const KIND_OPERATIONS: u8 = 2;
const KIND_FOOTER: u8 = 255;
/// Bytes of an entry before its key.
const ENTRY_HEADER_BYTES: usize = 23;
/// Bytes before a header's or chunk's content: length, checksum, kind and padding.
const FRAME_BYTES: usize = 12;
/// Longest chunk that is read, in bytes: more than an entry of the greatest value.
const MAX_CHUNK_BYTES: usize = 32 * 1024 * 1024;

/// Bytes that an entry takes beside its key, content type and value.
pub const ENTRY_BYTES: u64 = 23;

/// What a checkpoint is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cluster.
    pub cluster: ClusterId,
    /// The partition.
    pub partition: PartitionId,
    /// Its configuration.
    pub configuration: Configuration,
    /// The last record that was applied before the walk began.
    pub start: Position,
}

/// What is known at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The last record that was applied before the walk ended.
    pub end: Lsn,
    /// How many entries were written.
    pub entries: u64,
    /// Digest of the table at the end.
    pub digest: u64,
    /// Digest of the operations at the end; `None` where it was written before they were kept.
    pub operations_digest: Option<u64>,
}

/// A checkpoint that was read: as of `footer.end` only after the records up to there.
pub struct Checkpoint {
    /// What it is of.
    pub header: Header,
    /// The table.
    pub table: Table,
    /// The operations.
    pub operations: Operations,
    /// What it says of its end.
    pub footer: Footer,
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error(transparent)]
    Format(#[from] FormatError),
}

fn seed(identity: &Identity, partition: PartitionId, start: Position, chunk: u64) -> u32 {
    let mut place = [0; 42];
    place[..16].copy_from_slice(&identity.disk.0.to_le_bytes());
    place[16..18].copy_from_slice(&partition.0.to_le_bytes());
    place[18..26].copy_from_slice(&start.epoch.0.to_le_bytes());
    place[26..34].copy_from_slice(&start.lsn.0.to_le_bytes());
    place[34..].copy_from_slice(&chunk.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), identity.node.as_str().as_bytes())
}

/// Makes the bytes of a checkpoint, piece by piece.
#[derive(Debug)]
pub struct Encoder {
    identity: Identity,
    partition: PartitionId,
    start: Position,
    chunks: u64,
    entries: u64,
    body: Vec<u8>,
}

impl Encoder {
    /// Begins a checkpoint; the first piece is its header.
    #[must_use]
    pub fn new(identity: Identity, header: &Header) -> (Self, Vec<u8>) {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&header.cluster.0.to_le_bytes());
        out.extend_from_slice(&identity.disk.0.to_le_bytes());
        put_node(&mut out, identity.node);
        out.extend_from_slice(&header.partition.0.to_le_bytes());
        put_position(&mut out, header.start);
        put_configuration(&mut out, &header.configuration);
        let (partition, start) = (header.partition, header.start);
        let encoder = Encoder { identity, partition, start, chunks: 0, entries: 0, body: Vec::new() };
        // The header's length and checksum stand before it, as with every chunk, so that it can be read the same way.
        let mut framed = Vec::new();
        frame(&mut framed, crc32c::crc32c(&MAGIC), KIND_HEADER, &out);
        (encoder, framed)
    }

    /// Takes an entry.
    pub fn push(&mut self, key: &[u8], entry: Entry<'_>) {
        self.entries += 1;
        put_entry(&mut self.body, key, entry);
    }

    /// The next piece: the entries that were taken since the last.
    pub fn take_chunk(&mut self) -> Vec<u8> {
        let body = std::mem::take(&mut self.body);
        self.chunk(KIND_ENTRIES, &body)
    }

    /// The next piece: a chunk of [`Operations::next_chunk`], and the LSN to go on after; `None` when all were taken. They
    /// come in their order, before the entries, among them or behind.
    pub fn take_operations(&mut self, operations: &Operations, after: Lsn, max_bytes: usize) -> Option<(Vec<u8>, Lsn)> {
        let mut chunk = Vec::new();
        let last = operations.next_chunk(after, max_bytes, &mut chunk)?;
        Some((self.chunk(KIND_OPERATIONS, &chunk), last))
    }

    /// The last piece, with the digests of table and operations.
    #[must_use]
    pub fn finish(mut self, end: Lsn, digest: u64, operations_digest: u64) -> Vec<u8> {
        let mut out = if self.body.is_empty() { Vec::new() } else { self.take_chunk() };
        let mut footer = Vec::with_capacity(32);
        footer.extend_from_slice(&end.0.to_le_bytes());
        footer.extend_from_slice(&self.entries.to_le_bytes());
        footer.extend_from_slice(&digest.to_le_bytes());
        footer.extend_from_slice(&operations_digest.to_le_bytes());
        out.extend_from_slice(&self.chunk(KIND_FOOTER, &footer));
        out
    }

    fn chunk(&mut self, kind: u8, body: &[u8]) -> Vec<u8> {
        self.chunks += 1;
        let mut out = Vec::with_capacity(FRAME_BYTES + body.len());
        frame(&mut out, seed(&self.identity, self.partition, self.start, self.chunks), kind, body);
        out
    }
}

fn frame(out: &mut Vec<u8>, seed: u32, kind: u8, body: &[u8]) {
    assert!(body.len() <= MAX_CHUNK_BYTES, "a chunk of {} bytes, which nobody would read", body.len());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let kind = [kind, 0, 0, 0];
    let checksum =
        crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c_append(seed, &out[out.len() - 4..]), &kind), body);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.extend_from_slice(&kind);
    out.extend_from_slice(body);
}

/// Reads the next chunk, whose checksum has this seed, into `body`; its kind.
fn read_frame(source: &mut impl Read, seed: u32, body: &mut Vec<u8>) -> Result<u8, ReadError> {
    let mut head = [0; FRAME_BYTES];
    read_exact(source, &mut head)?;
    let bytes = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if bytes > MAX_CHUNK_BYTES {
        return Err(FormatError::Damaged("a chunk of impossible length").into());
    }
    body.resize(bytes, 0);
    read_exact(source, body)?;
    let found = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c_append(seed, &head[..4]), &head[8..]), body);
    if found.to_le_bytes() != head[4..8] {
        return Err(FormatError::Damaged("a checksum does not match").into());
    }
    if head[9..] != [0; 3] {
        return Err(FormatError::Damaged("a chunk with unknown flags").into());
    }
    Ok(head[8])
}

fn read_exact(source: &mut impl Read, out: &mut [u8]) -> Result<(), ReadError> {
    source.read_exact(out).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FormatError::Damaged("it ends too early").into(),
        _ => error.into(),
    })
}

/// Reads a checkpoint.
///
/// # Errors
/// When it is not whole, or not of this disk and partition.
pub fn read(source: &mut impl Read, identity: &Identity) -> Result<Checkpoint, ReadError> {
    let (version, header) = read_head(source, identity)?;
    let has_operations = version != WITHOUT_OPERATIONS;
    let (mut table, mut body) = (Table::default(), Vec::new());
    let mut operations =
        if has_operations { Operations::default() } else { Operations::unknown_up_to(header.start.lsn) };
    let (mut chunks, mut entries, mut newest) = (0, 0, Lsn(0));
    loop {
        chunks += 1;
        let kind = read_frame(source, seed(identity, header.partition, header.start, chunks), &mut body)?;
        let mut fields = Fields(&body);
        match kind {
            KIND_ENTRIES => {
                while !fields.0.is_empty() {
                    let (key, entry) = read_entry(&mut fields)?;
                    table.put_if_newer(key, entry);
                    (entries, newest) = (entries + 1, newest.max(entry.lsn));
                }
            }
            KIND_OPERATIONS if has_operations => operations.take_chunk(fields.0)?,
            KIND_FOOTER => {
                let (end, entries_written, digest) = (Lsn(fields.count()?), fields.u64()?, fields.u64()?);
                let operations_digest = if has_operations { Some(fields.u64()?) } else { None };
                let ends = fields.0.is_empty() && source.by_ref().take(1).read_to_end(&mut Vec::new())? == 0;
                let newest = newest.max(operations.last());
                if !ends || entries_written != entries || end < header.start.lsn || end < newest {
                    return Err(FormatError::Damaged("its footer does not go with it").into());
                }
                let footer = Footer { end, entries, digest, operations_digest };
                return Ok(Checkpoint { header, table, operations, footer });
            }
            _ => return Err(FormatError::Damaged("a chunk of an unknown kind").into()),
        }
    }
}

/// Reads only what a checkpoint is of.
///
/// # Errors
/// As [`read`].
pub fn read_only_header(source: &mut impl Read, identity: &Identity) -> Result<Header, ReadError> {
    Ok(read_head(source, identity)?.1)
}

fn read_head(source: &mut impl Read, identity: &Identity) -> Result<(u32, Header), ReadError> {
    let mut body = Vec::new();
    if read_frame(source, crc32c::crc32c(&MAGIC), &mut body)? != KIND_HEADER {
        return Err(FormatError::Damaged("no header of a checkpoint").into());
    }
    Ok(read_header(&body, identity)?)
}

fn read_header(body: &[u8], identity: &Identity) -> Result<(u32, Header), FormatError> {
    let mut fields = Fields(body);
    if fields.array()? != MAGIC {
        return Err(FormatError::Damaged("no header of a checkpoint"));
    }
    let version = fields.u32()?;
    if ![WITHOUT_OPERATIONS, FORMAT_VERSION].contains(&version) {
        return Err(FormatError::OtherFormat(version));
    }
    let (cluster, disk, node) = (ClusterId(fields.u128()?), DiskId(fields.u128()?), fields.node()?);
    if disk != identity.disk || node != identity.node {
        return Err(FormatError::OtherDisk { node, disk });
    }
    let (partition, start) = (PartitionId(fields.u16()?), fields.position()?);
    let configuration = read_configuration(&mut fields)?;
    if !fields.0.is_empty() {
        return Err(FormatError::Damaged("a header that is longer than what it says"));
    }
    Ok((version, Header { cluster, partition, configuration, start }))
}

pub(crate) fn put_entry(out: &mut Vec<u8>, key: &[u8], entry: Entry<'_>) {
    out.reserve(ENTRY_HEADER_BYTES + key.len() + entry.content_type.len() + entry.value.len());
    out.extend_from_slice(&entry.lsn.0.to_le_bytes());
    out.extend_from_slice(&entry.expires.map_or(0, Expiry::ms).to_le_bytes());
    out.extend_from_slice(&(key.len() as u16).to_le_bytes());
    out.push(entry.content_type.len() as u8);
    out.extend_from_slice(&(entry.value.len() as u32).to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(entry.content_type.as_bytes());
    out.extend_from_slice(entry.value);
}

pub(crate) fn read_entry<'a>(fields: &mut Fields<'a>) -> Result<(&'a [u8], Entry<'a>), FormatError> {
    let (lsn, expires) = (Lsn(fields.u64()?), Expiry::from_ms(fields.u64()?));
    let (key_bytes, content_type_bytes) = (usize::from(fields.u16()?), usize::from(fields.array::<1>()?[0]));
    let value_bytes = fields.u32()? as usize;
    if key_bytes == 0
        || key_bytes > MAX_KEY_BYTES
        || content_type_bytes > MAX_CONTENT_TYPE_BYTES
        || value_bytes > HIGHEST_MAX_VALUE_BYTES
    {
        return Err(FormatError::Damaged("an entry that cannot be"));
    }
    let key = fields.take(key_bytes)?;
    let content_type = std::str::from_utf8(fields.take(content_type_bytes)?);
    let content_type = content_type.map_err(|_| FormatError::Damaged("a content type that is no text"))?;
    Ok((key, Entry { lsn, expires, content_type, value: fields.take(value_bytes)? }))
}

/// The name of a checkpoint: `pPARTITION-START.ckpt`, zero-padded decimals.
#[must_use]
pub fn file_name(partition: PartitionId, start: Lsn) -> String {
    format!("p{:05}-{:020}.ckpt", partition.0, start.0)
}

/// The partition and the start of the checkpoint that has this name.
#[must_use]
pub fn of_file_name(name: &str) -> Option<(PartitionId, Lsn)> {
    let (partition, start) = name.strip_suffix(".ckpt")?.strip_prefix('p')?.split_once('-')?;
    let parsed = (PartitionId(partition.parse().ok()?), Lsn(start.parse().ok()?));
    (file_name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// For the fuzz targets: a header with this content, or a good one, and chunks of these kinds, all with the right checksums.
#[cfg(fuzzing)]
#[must_use]
pub fn with_checksums(identity: &Identity, header: Option<&[u8]>, chunks: &[(u8, &[u8])]) -> Vec<u8> {
    use kv_proto::ids::{Epoch, HistoryId, Member};
    let leader = Member { node: identity.node, disk: identity.disk };
    let configuration = Configuration { epoch: Epoch(1), history: HistoryId(1), leader, in_sync: vec![] };
    let start = Position { epoch: Epoch(1), lsn: Lsn(1) };
    let of = Header { cluster: ClusterId(9), partition: PartitionId(0), configuration, start };
    let (mut encoder, mut out) = Encoder::new(*identity, &of);
    if let Some(header) = header {
        out.clear();
        frame(
            &mut out,
            crc32c::crc32c(&MAGIC),
            KIND_HEADER,
            &[&MAGIC[..], &FORMAT_VERSION.to_le_bytes(), header].concat(),
        );
        if let Ok((_, found)) = read_header(&out[FRAME_BYTES..], identity) {
            (encoder.partition, encoder.start) = (found.partition, found.start);
        }
    }
    for (kind, body) in chunks {
        out.extend(encoder.chunk(*kind, body));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::{Done, Known};
    use kv_proto::{
        effect::Effect,
        ids::{ClientId, Epoch, HistoryId, Member, NodeId, OperationId},
        replication::Record,
    };

    fn identity() -> Identity {
        Identity { node: NodeId::new("n1").expect("a name"), disk: DiskId(0x0d15_c000) }
    }

    fn header() -> Header {
        let leader = Member { node: identity().node, disk: identity().disk };
        let configuration = Configuration { epoch: Epoch(5), history: HistoryId(1), leader, in_sync: vec![] };
        let start = Position { epoch: Epoch(4), lsn: Lsn(0x11) };
        Header { cluster: ClusterId(0xc1), partition: PartitionId(0x0102), configuration, start }
    }

    fn entry(lsn: u64, value: &[u8]) -> Entry<'_> {
        Entry { lsn: Lsn(lsn), expires: Expiry::from_ms(0x0304), content_type: "t", value }
    }

    fn operate(operations: &mut Operations, lsn: u64) {
        let (position, effect) = (Position { epoch: Epoch(1), lsn: Lsn(lsn) }, Effect::Delete { key: b"k" });
        let operation_id = Some(OperationId { client: ClientId(5), sequence: 6, known_lsn: Lsn(0) });
        operations.apply(&Record { position, operation_id, payload: effect.encode().into() }, &effect);
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
    }

    fn encode(entries: &[(&[u8], u64)], end: u64, digest: u64) -> Vec<u8> {
        encode_with(entries, &Operations::default(), end, digest)
    }

    fn encode_with(entries: &[(&[u8], u64)], operations: &Operations, end: u64, digest: u64) -> Vec<u8> {
        let (mut encoder, mut out) = Encoder::new(identity(), &header());
        let mut after = Lsn(0);
        while let Some((piece, next)) = encoder.take_operations(operations, after, 1) {
            out.extend(piece);
            after = next;
        }
        for (key, lsn) in entries {
            encoder.push(key, entry(*lsn, b"v"));
            out.extend(encoder.take_chunk());
        }
        out.extend(encoder.finish(Lsn(end), digest, 0x77));
        out
    }

    fn read(bytes: &[u8]) -> Result<Checkpoint, String> {
        super::read(&mut &bytes[..], &identity()).map_err(|e| e.to_string())
    }

    #[test]
    fn golden_bytes() {
        let mut operations = Operations::default();
        operate(&mut operations, 0x12);
        let bytes = encode_with(&[(b"k", 0x10)], &operations, 0x12, 0x99);
        let golden = [
            "62000000 9075d084 00000000 6b762d636b70740a 02000000 c1000000000000000000000000000000",
            "00c0150d000000000000000000000000 026e31 0201 04000000000000001100000000000000",
            "0500000000000000010000000100 00c0150d000000000000000000000000 026e31",
            "29000000 38181f18 02000000 0000000000000000 05000000000000000000000000000000 0600000000000000",
            "1200000000000000 00",
            "1a000000 af6aef9a 01000000 1000000000000000 0403000000000000 0100 01 01000000 6b 74 76",
            "20000000 9f08cd52 ff000000 1200000000000000 0100000000000000 9900000000000000 7700000000000000",
        ];
        assert_eq!(hex(&bytes), golden.concat().replace(' ', ""));
        let found = read(&bytes).expect("it is whole");
        let footer = Footer { end: Lsn(0x12), entries: 1, digest: 0x99, operations_digest: Some(0x77) };
        assert_eq!((found.header, found.footer), (header(), footer));
        assert_eq!(found.table.get(b"k"), Some(entry(0x10, b"v")));
        let id = OperationId { client: ClientId(5), sequence: 6, known_lsn: Lsn(0) };
        assert_eq!(found.operations.find(&id), Known::Done(Done::Written(Lsn(0x12))));
        assert_eq!(read_only_header(&mut &bytes[..], &identity()).expect("a header"), header());
    }

    #[test]
    fn version_1_is_read_and_knows_no_operations_before_its_start() {
        let golden = [
            "62000000 5f017c2d 00000000 6b762d636b70740a 01000000 c1000000000000000000000000000000",
            "00c0150d000000000000000000000000 026e31 0201 04000000000000001100000000000000",
            "0500000000000000010000000100 00c0150d000000000000000000000000 026e31",
            "1a000000 ee061c3a 01000000 1000000000000000 0403000000000000 0100 01 01000000 6b 74 76",
            "18000000 9ad46373 ff000000 1200000000000000 0100000000000000 9900000000000000",
        ];
        let golden = golden.concat().replace(' ', "");
        let digits = golden.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
        let bytes: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).expect("digits")).collect();
        let found = read(&bytes).expect("it is whole");
        let footer = Footer { end: Lsn(0x12), entries: 1, digest: 0x99, operations_digest: None };
        assert_eq!((found.header, found.footer), (header(), footer));
        assert_eq!(found.table.get(b"k"), Some(entry(0x10, b"v")));
        let id = |known_lsn| OperationId { client: ClientId(5), sequence: 6, known_lsn: Lsn(known_lsn) };
        assert_eq!(found.operations.find(&id(0x10)), Known::TooOld);
        assert_eq!(found.operations.find(&id(0x11)), Known::New);
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(read(&encode(&[], 0x11, 0)).is_ok(), "an empty table");
        let error = |bytes: &[u8]| read(bytes).err().expect("it cannot be used");
        assert!(error(&encode(&[], 0x10, 0)).contains("footer"), "it ends before it starts");
        assert!(error(&encode(&[(b"k", 0x13)], 0x12, 0)).contains("footer"), "an entry of later");
        assert!(error(&encode(&[(b"", 1)], 0x12, 0)).contains("cannot be"));
        let mut operations = Operations::default();
        operate(&mut operations, 0x13);
        assert!(error(&encode_with(&[], &operations, 0x12, 0)).contains("footer"), "an operation of later");
        // A chunk that is left out, or stands elsewhere.
        let (mut encoder, head) = Encoder::new(identity(), &header());
        let mut chunk = |key: &[u8]| {
            encoder.push(key, entry(1, b"v"));
            encoder.take_chunk()
        };
        let (first, second) = (chunk(b"a"), chunk(b"b"));
        let rest = encoder.finish(Lsn(0x12), 0, 0);
        assert!(read(&[&head[..], &first, &second, &rest].concat()).is_ok());
        for chunks in [[&second, &first], [&first, &first]] {
            assert!(error(&[&head[..], chunks[0], chunks[1], &rest].concat()).contains("checksum"));
        }
        assert!(error(&[&head[..], &first, &rest].concat()).contains("checksum"));
    }

    #[test]
    fn versions_and_disks_are_told_from_damage() {
        let bytes = encode(&[], 0x12, 0);
        let other = Identity { disk: DiskId(1), ..identity() };
        let found = super::read(&mut &bytes[..], &other).err().expect("another's");
        assert!(matches!(found, ReadError::Format(FormatError::OtherDisk { .. })), "{found}");
        let mut future = Vec::new();
        frame(&mut future, crc32c::crc32c(&MAGIC), KIND_HEADER, &[&MAGIC[..], &[3, 0, 0, 0, 9]].concat());
        let found = super::read(&mut &future[..], &identity()).err().expect("a newer one");
        assert!(matches!(found, ReadError::Format(FormatError::OtherFormat(3))), "{found}");
    }

    #[test]
    fn names_are_those_of_checkpoints_alone() {
        let name = file_name(PartitionId(7), Lsn(12));
        assert_eq!(name, "p00007-00000000000000000012.ckpt");
        assert_eq!(of_file_name(&name), Some((PartitionId(7), Lsn(12))));
        for other in
            ["p7-12.ckpt", "p00007-00000000000000000012.ckpt.new", "p99999-00000000000000000012.ckpt", "x.ckpt"]
        {
            assert_eq!(of_file_name(other), None, "{other}");
        }
    }
}
