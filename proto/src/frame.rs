//! Frames: a fixed header written by hand, then a body.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic: `C5 4B` (not ASCII, so that no text protocol is ever taken for this one) |
//! | 2 | 1 | protocol version: 1 |
//! | 3 | 1 | reserved: 0 |
//! | 4 | 4 | CRC32C of everything after this field: bytes 8 to the end of the body |
//! | 8 | 1 | kind, see [`Kind`] |
//! | 9 | 1 | flags: bit 0 = more frames of this message follow |
//! | 10 | 2 | reserved: 0 |
//! | 12 | 4 | length of the body in this frame, at most 262,144 |
//! | 16 | 8 | id: chosen by who asks, repeated by who answers |
//!
//! Numbers are little-endian. A message with a longer body travels in several frames of the same kind and
//! id, in order; one such message at a time per direction. Whole messages of another kind or id may stand between its
//! frames; one of the same kind and id would be joined to it. [`append_message`] puts nothing between them.
//!
//! # Invariants
//! * A length is checked against its limit before a byte is allocated for it.
//! * A body is handed out only after its checksum was verified.

/// Version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u8 = 2;
/// The first two bytes of every frame.
pub const MAGIC: [u8; 2] = [0xC5, 0x4B];
/// Bytes of a frame before its body.
pub const HEADER_BYTES: usize = 24;
/// Longest body of one frame, in bytes; longer messages are cut into frames of this size.
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;

const CHECKSUM: std::ops::Range<usize> = 4..8;
const CHECKED_FROM: usize = 8;
const FLAG_MORE: u8 = 1;

/// What a message is; says which type its body has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// [`crate::hello::Hello`]: the first message of every connection.
    Hello = 1,
    /// [`crate::hello::Welcome`]: the answer to a hello.
    Welcome = 2,
    /// [`crate::error_code::WireError`] about the connection itself, which closes after it.
    Refusal = 3,
    /// [`crate::request::Request`]
    Request = 4,
    /// [`crate::response::Response`]
    Response = 5,
    /// [`crate::replication::PeerBatch`], in both directions.
    Replication = 6,
    /// [`crate::control::ToController`]
    ToController = 7,
    /// [`crate::control::FromController`]
    FromController = 8,
    /// What controllers ask each other, and the answers: JSON, whose types are the controllers' own business.
    Consensus = 9,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 9] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refusal,
        Kind::Request,
        Kind::Response,
        Kind::Replication,
        Kind::ToController,
        Kind::FromController,
        Kind::Consensus,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }
}

/// Why bytes are not a frame. The connection that they came from cannot be read any further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are those of an HTTP request.
    #[error(
        "this is the binary port of a kv node and speaks no HTTP; the HTTP API is served by the router, by default on port 5000"
    )]
    Http,
    /// The first bytes are not those of a frame.
    #[error("not a frame: it starts with {0:02x?} instead of c5 4b")]
    BadMagic([u8; 2]),
    /// A frame of a protocol that this crate does not speak.
    #[error("protocol version {0} is not spoken here, only version {PROTOCOL_VERSION}")]
    UnsupportedVersion(u8),
    /// A header field has a value that it cannot have.
    #[error("bad frame: {0}")]
    BadHeader(&'static str),
    /// The message is longer than what was agreed.
    #[error("a message of more than {limit} bytes")]
    TooLarge {
        /// The longest body allowed, in bytes.
        limit: usize,
    },
    /// The bytes were changed on their way.
    #[error("bad frame: its checksum does not match its bytes")]
    BadChecksum,
}

/// A whole message, borrowed from where it was received.
#[derive(Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: u64,
    /// Its body, checksum verified.
    pub body: &'a [u8],
}

/// Appends a message whose body is written by `body`, cut into frames where it is long.
pub fn append_message(out: &mut Vec<u8>, kind: Kind, id: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    body(out);
    let length = out.len() - start - HEADER_BYTES;
    if length <= MAX_CHUNK_BYTES {
        seal(&mut out[start..], kind, 0, id);
        return;
    }
    let whole = out.split_off(start + HEADER_BYTES);
    out.truncate(start);
    let mut chunks = whole.chunks(MAX_CHUNK_BYTES).peekable();
    while let Some(chunk) = chunks.next() {
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        out.extend_from_slice(chunk);
        seal(&mut out[start..], kind, if chunks.peek().is_some() { FLAG_MORE } else { 0 }, id);
    }
}

/// Writes the header of a frame that is complete but for it.
fn seal(frame: &mut [u8], kind: Kind, flags: u8, id: u64) {
    let length = (frame.len() - HEADER_BYTES) as u32;
    frame[..2].copy_from_slice(&MAGIC);
    frame[2] = PROTOCOL_VERSION;
    frame[3] = 0;
    frame[8] = kind as u8;
    frame[9] = flags;
    frame[10..12].fill(0);
    frame[12..16].copy_from_slice(&length.to_le_bytes());
    frame[16..24].copy_from_slice(&id.to_le_bytes());
    let checksum = crc32c::crc32c(&frame[CHECKED_FROM..]);
    frame[CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
}

struct Header {
    kind: Kind,
    more: bool,
    length: usize,
    id: u64,
    checksum: u32,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

impl Header {
    /// Reads the header of the next frame; `None` while it is not complete. What is wrong with the first bytes
    /// is told as soon as they are there.
    fn parse(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        const METHODS: [&[u8]; 9] = [b"GET ", b"PUT ", b"POST", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC"];
        if bytes.len() >= 4 && METHODS.contains(&&bytes[..4]) {
            return Err(FrameError::Http);
        }
        if bytes.len() >= 4 && bytes[..2] != MAGIC {
            return Err(FrameError::BadMagic(number(bytes, 0)));
        }
        if bytes.len() >= 4 && bytes[2] != PROTOCOL_VERSION {
            return Err(FrameError::UnsupportedVersion(bytes[2]));
        }
        if bytes.len() < HEADER_BYTES {
            return Ok(None);
        }
        let kind = Kind::from_byte(bytes[8]).ok_or(FrameError::BadHeader("unknown kind"))?;
        if bytes[9] & !FLAG_MORE != 0 {
            return Err(FrameError::BadHeader("unknown flags"));
        }
        if bytes[3] != 0 || bytes[10..12] != [0, 0] {
            return Err(FrameError::BadHeader("reserved bytes are not zero"));
        }
        let length = u32::from_le_bytes(number(bytes, 12)) as usize;
        if length > MAX_CHUNK_BYTES {
            return Err(FrameError::TooLarge { limit: MAX_CHUNK_BYTES });
        }
        Ok(Some(Header {
            kind,
            more: bytes[9] & FLAG_MORE != 0,
            length,
            id: u64::from_le_bytes(number(bytes, 16)),
            checksum: u32::from_le_bytes(number(bytes, CHECKSUM.start)),
        }))
    }
}

/// Turns received bytes into messages.
///
/// Holds nothing but the frames of a message that is not complete yet; the caller keeps the bytes that were
/// not used and gives them again together with those that follow.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    assembly: Option<Assembly>,
}

#[derive(Debug)]
struct Assembly {
    kind: Kind,
    id: u64,
    body: Vec<u8>,
    complete: bool,
}

impl Decoder {
    /// A decoder that takes messages of up to `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Decoder { limit, assembly: None }
    }

    /// Changes the limit for what comes next, as when a hello was accepted.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes held for a message that is not complete yet.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.assembly.as_ref().map_or(0, |a| a.body.len())
    }

    /// Takes the next message from the front of `bytes`: how many bytes were used, and the message if one is
    /// complete. `(0, None)` says that more bytes are needed.
    ///
    /// # Errors
    /// When the bytes cannot be what a peer sends; the connection is of no use after it.
    pub fn decode<'a>(&'a mut self, bytes: &'a [u8]) -> Result<(usize, Option<Message<'a>>), FrameError> {
        if self.assembly.as_ref().is_some_and(|a| a.complete) {
            self.assembly = None;
        }
        let mut used = 0;
        loop {
            let rest = &bytes[used..];
            let Some(header) = Header::parse(rest)? else { return Ok((used, None)) };
            let held = match &self.assembly {
                Some(a) if (a.kind, a.id) == (header.kind, header.id) => Some(a.body.len()),
                Some(_) if header.more => return Err(FrameError::BadHeader("two messages interleave their frames")),
                _ => None,
            };
            if held.unwrap_or(0) + header.length > self.limit {
                return Err(FrameError::TooLarge { limit: self.limit });
            }
            let end = HEADER_BYTES + header.length;
            let Some(frame) = rest.get(..end) else { return Ok((used, None)) };
            if crc32c::crc32c(&frame[CHECKED_FROM..]) != header.checksum {
                return Err(FrameError::BadChecksum);
            }
            used += end;
            if held.is_none() && !header.more {
                let body = &bytes[used - header.length..used];
                return Ok((used, Some(Message { kind: header.kind, id: header.id, body })));
            }
            if header.length == 0 {
                return Err(FrameError::BadHeader("an empty part of a message"));
            }
            let assembly = self.assembly.get_or_insert_with(|| Assembly {
                kind: header.kind,
                id: header.id,
                body: Vec::new(),
                complete: false,
            });
            assembly.body.extend_from_slice(&frame[HEADER_BYTES..]);
            if !header.more {
                assembly.complete = true;
                break;
            }
        }
        let message = self.assembly.as_ref().map(|a| Message { kind: a.kind, id: a.id, body: &a.body });
        Ok((used, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: Kind, id: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append_message(&mut out, kind, id, |b| b.extend_from_slice(body));
        out
    }

    /// All messages in `bytes`, given to the decoder in pieces that end at `cuts`.
    fn decode_all(bytes: &[u8], cuts: &[usize], limit: usize) -> Result<Vec<(Kind, u64, Vec<u8>)>, FrameError> {
        let mut decoder = Decoder::new(limit);
        let (mut messages, mut start) = (Vec::new(), 0);
        for end in cuts.iter().copied().chain([bytes.len()]) {
            let end = end.clamp(start, bytes.len());
            loop {
                let (used, message) = decoder.decode(&bytes[start..end])?;
                start += used;
                match message {
                    Some(m) => messages.push((m.kind, m.id, m.body.to_vec())),
                    None => break,
                }
            }
        }
        assert_eq!(start, bytes.len(), "bytes were left over");
        Ok(messages)
    }

    #[test]
    fn golden_bytes() {
        let bytes = message(Kind::Request, 0x0102_0304_0506_0708, b"hi");
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "c54b02004643af47040000000200000008070605040302016869");
    }

    #[test]
    fn a_long_message_travels_in_chunks_and_lets_others_through() {
        let long = vec![7; MAX_CHUNK_BYTES + 1];
        let mut bytes = message(Kind::Response, 5, &long);
        assert_eq!(bytes.len(), long.len() + 2 * HEADER_BYTES);
        let second = HEADER_BYTES + MAX_CHUNK_BYTES;
        let beacon = message(Kind::Replication, 0, b"beacon");
        bytes.splice(second..second, beacon);
        let messages = decode_all(&bytes, &[], long.len()).expect("valid");
        assert_eq!(messages, [(Kind::Replication, 0, b"beacon".to_vec()), (Kind::Response, 5, long)]);
    }

    #[test]
    fn limits_hold_for_one_frame_and_for_all_frames_of_a_message() {
        let bytes = message(Kind::Request, 1, &[0; 101]);
        assert_eq!(decode_all(&bytes, &[], 100), Err(FrameError::TooLarge { limit: 100 }));
        let long = message(Kind::Request, 1, &vec![0; 3 * MAX_CHUNK_BYTES]);
        let limit = 2 * MAX_CHUNK_BYTES;
        assert_eq!(decode_all(&long, &[], limit), Err(FrameError::TooLarge { limit }));
        let mut huge = message(Kind::Request, 1, b"");
        huge[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Decoder::new(usize::MAX).decode(&huge), Err(FrameError::TooLarge { limit: MAX_CHUNK_BYTES }));
    }

    #[test]
    fn every_other_protocol_is_told_apart_by_its_first_four_bytes() {
        let mut decoder = Decoder::new(100);
        assert_eq!(decoder.decode(b"GET /get?key=a HTTP/1.1\r\n"), Err(FrameError::Http));
        assert_eq!(decoder.decode(b"POST"), Err(FrameError::Http));
        assert_eq!(decoder.decode(b"*1\r\n$4\r\nPING"), Err(FrameError::BadMagic(*b"*1")));
        assert_eq!(decoder.decode(&[0xC5, 0x4B, 9, 0]), Err(FrameError::UnsupportedVersion(9)));
        assert_eq!(decoder.decode(b"GE"), Ok((0, None)));
    }

    #[test]
    fn header_fields_have_only_the_values_that_they_can_have() {
        for (at, value) in [(3, 1), (8, 0), (8, 99), (9, 2), (10, 1), (11, 1)] {
            let mut bytes = message(Kind::Request, 1, b"x");
            bytes[at] = value;
            assert!(matches!(Decoder::new(100).decode(&bytes), Err(FrameError::BadHeader(_))), "byte {at} = {value}");
        }
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..6),
            cuts in prop::collection::vec(0..2000usize, 0..8),
        ) {
            let mut bytes = Vec::new();
            for (id, body) in bodies.iter().enumerate() {
                append_message(&mut bytes, Kind::Response, id as u64, |b| b.extend_from_slice(body));
            }
            let mut cuts = cuts;
            cuts.sort_unstable();
            let messages = decode_all(&bytes, &cuts, 300).unwrap();
            let expected: Vec<_> = bodies.into_iter().enumerate().map(|(i, b)| (Kind::Response, i as u64, b)).collect();
            prop_assert_eq!(messages, expected);
        }

        #[test]
        fn one_flipped_bit_is_never_a_message(
            body in prop::collection::vec(any::<u8>(), 0..100), at in 0..124usize, bit in 0..8u32,
        ) {
            let mut bytes = message(Kind::Request, 77, &body);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok((_, Some(message))) = Decoder::new(1000).decode(&bytes) {
                prop_assert!(false, "taken for {message:?}");
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Decoder::new(100).decode(&bytes);
        }
    }
}
