//! The limits that both sides check before they allocate or send.

use crate::error_code::{ErrorCode, WireError};
use bincode::{Decode, Encode};

/// Longest key, in bytes. Keys have at least one.
pub const MAX_KEY_BYTES: usize = 4 * 1024;
/// Longest content type, in bytes.
pub const MAX_CONTENT_TYPE_BYTES: usize = 255;
/// Longest life of a value that the HTTP API and the client ask for, in milliseconds: ten years of 365 days.
pub const MAX_TTL_MS: u64 = 10 * 365 * 86_400 * 1000;
/// Default of the longest value, in bytes.
pub const DEFAULT_MAX_VALUE_BYTES: usize = 1024 * 1024;
/// The longest value that a node can be told to take, in bytes.
pub const HIGHEST_MAX_VALUE_BYTES: usize = 16 * 1024 * 1024;
/// What a message may have beside its value, in bytes.
pub const MESSAGE_OVERHEAD_BYTES: usize = 64 * 1024;

/// The limits of one node, told to clients when they connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Limits {
    /// Longest value, in bytes.
    pub max_value_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_value_bytes: DEFAULT_MAX_VALUE_BYTES as u32 }
    }
}

impl Limits {
    /// Longest message body, all its frames together, in bytes.
    #[must_use]
    pub fn max_message_bytes(&self) -> usize {
        self.max_value_bytes as usize + MESSAGE_OVERHEAD_BYTES
    }

    /// Checks a key.
    ///
    /// # Errors
    /// [`ErrorCode::KeyEmpty`] or [`ErrorCode::KeyTooLarge`].
    pub fn check_key(&self, key: &[u8]) -> Result<(), WireError> {
        match key.len() {
            0 => Err(WireError::new(ErrorCode::KeyEmpty, "the key is empty; a key has 1 to 4096 bytes")),
            1..=MAX_KEY_BYTES => Ok(()),
            n => {
                Err(WireError::new(ErrorCode::KeyTooLarge, format!("the key has {n} bytes, more than {MAX_KEY_BYTES}")))
            }
        }
    }

    /// Checks a value and its content type.
    ///
    /// # Errors
    /// [`ErrorCode::ValueTooLarge`] or [`ErrorCode::ContentTypeTooLarge`].
    pub fn check_value(&self, content_type: &str, value: &[u8]) -> Result<(), WireError> {
        let (n, max) = (value.len(), self.max_value_bytes as usize);
        if n > max {
            return Err(WireError::new(ErrorCode::ValueTooLarge, format!("the value has {n} bytes, more than {max}")));
        }
        let n = content_type.len();
        if n > MAX_CONTENT_TYPE_BYTES {
            let message = format!("the content type has {n} bytes, more than {MAX_CONTENT_TYPE_BYTES}");
            return Err(WireError::new(ErrorCode::ContentTypeTooLarge, message));
        }
        Ok(())
    }
}
