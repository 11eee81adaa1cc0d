//! Message bodies: the only file that knows bincode.
//!
//! Integers have fixed width and are little-endian. A decoder is told how many bytes it may claim, and must
//! use up exactly what it was given: trailing bytes are an error, not a hidden second message.

use crate::limits::{HIGHEST_MAX_VALUE_BYTES, MESSAGE_OVERHEAD_BYTES};
use bincode::{
    BorrowDecode, Encode,
    config::{Configuration, Fixint, Limit, LittleEndian},
};

/// Upper bound of what a decoder may allocate for one body, whatever lengths the body claims, in bytes: the longest
/// message of a node that takes the longest values. Lists count by what their elements take in memory, which is more
/// than on the wire; those of the protocol are far from this bound.
const DECODE_LIMIT: usize = HIGHEST_MAX_VALUE_BYTES + MESSAGE_OVERHEAD_BYTES;

const ENCODE: Configuration<LittleEndian, Fixint> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding();
const DECODE: Configuration<LittleEndian, Fixint, Limit<DECODE_LIMIT>> = ENCODE.with_limit::<DECODE_LIMIT>();

/// Why a body is not the message that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end early, or say something that the type cannot hold.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// The message ends before its bytes do.
    #[error("malformed message: {0} bytes after its end")]
    TrailingBytes(usize),
}

/// Encodes a message into a new buffer.
///
/// # Panics
/// Never for the types of this crate: writing to a `Vec` cannot fail.
#[must_use]
pub fn encode<T: Encode>(message: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(&mut out, message);
    out
}

/// Appends an encoded message.
///
/// # Panics
/// Never for the types of this crate: writing to a `Vec` cannot fail.
pub fn encode_into<T: Encode>(out: &mut Vec<u8>, message: &T) {
    bincode::encode_into_std_write(message, out, ENCODE).expect("encoding into memory cannot fail");
}

/// Decodes a message; keys, values and texts borrow from `bytes` where the type lets them.
///
/// # Errors
/// When `bytes` are not exactly one such message.
pub fn decode<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    let (message, used) =
        bincode::borrow_decode_from_slice(bytes, DECODE).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    if used != bytes.len() {
        return Err(DecodeError::TrailingBytes(bytes.len() - used));
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::{Epoch, Lsn, PartitionId},
        limits::{MAX_CONTENT_TYPE_BYTES, MAX_KEY_BYTES},
        replication::{Effect, PeerBatch, PeerBody, PeerMessage, Position, Record},
    };

    #[test]
    fn a_hostile_length_is_an_error_and_not_an_allocation() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend([0; 8]);
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(DecodeError::Malformed(_))));
        assert!(matches!(decode::<&[u8]>(&bytes), Err(DecodeError::Malformed(_))));
        let bytes = (DECODE_LIMIT as u64).to_le_bytes();
        let refused = Err(DecodeError::Malformed("LimitExceeded".to_owned()));
        assert_eq!(decode::<Vec<u8>>(&bytes), refused, "the length itself counts too");
    }

    #[test]
    fn the_longest_message_is_taken() {
        let (key, value) = (vec![1; MAX_KEY_BYTES], vec![2; HIGHEST_MAX_VALUE_BYTES]);
        let content_type = "x".repeat(MAX_CONTENT_TYPE_BYTES);
        let put = Effect::Put { key: &key, content_type: &content_type, value: &value, expires: None };
        let record = Record { position: Position::default(), operation_id: None, payload: put.encode().into() };
        let body = PeerBody::Prepare { previous: Position::default(), committed: Lsn(0), records: vec![record] };
        let batch =
            PeerBatch { room: 0, messages: vec![PeerMessage { partition: PartitionId(0), epoch: Epoch(1), body }] };
        assert_eq!(decode(&encode(&batch)), Ok(batch));
    }

    #[test]
    fn trailing_bytes_are_counted_and_refused() {
        assert_eq!(decode::<u32>(&[1, 0, 0, 0]), Ok(1));
        assert_eq!(decode::<u32>(&[1, 0, 0, 0, 9, 9]), Err(DecodeError::TrailingBytes(2)));
    }
}
