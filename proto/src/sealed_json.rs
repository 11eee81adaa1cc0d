//! Small files that are kept as JSON, with a format number and a checksum.
//!
//! ```json
//! {"format": 1, "checksum": "9ae0daaf", "cluster": {…}}
//! ```
//!
//! The checksum is the CRC32C of the text of the content, as it stands there.
//!
//! # Invariants
//! * What is not whole, or of a format that the caller does not know, is an error and never an empty content.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use std::collections::HashMap;

/// Why a text is no such file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not what was written; the text says what is wrong.
    #[error("damaged ({0})")]
    Damaged(String),
    /// Another version of this program wrote it.
    #[error("format {0}")]
    OtherFormat(u64),
}

fn checksum(text: &str) -> String {
    format!("{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// The bytes of a file with this content under this name.
///
/// # Errors
/// When the content is nothing that JSON can hold.
pub fn seal(name: &str, format: u64, content: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let text = serde_json::to_string_pretty(content)?;
    Ok(format!("{{\"format\":{format},\"checksum\":\"{}\",\"{name}\":{text}}}\n", checksum(&text)).into_bytes())
}

/// The content of a file.
///
/// # Errors
/// When it is not whole, or of another format.
pub fn open<T: DeserializeOwned>(name: &str, format: u64, bytes: &[u8]) -> Result<T, OpenError> {
    let damaged = |what: String| OpenError::Damaged(what);
    let fields: HashMap<&str, &RawValue> = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
    let field = |name: &str| fields.get(name).map(|f| f.get()).ok_or_else(|| damaged(format!("it has no {name:?}")));
    let found: u64 = serde_json::from_str(field("format")?).map_err(|e| damaged(e.to_string()))?;
    if found != format {
        return Err(OpenError::OtherFormat(found));
    }
    let sum: String = serde_json::from_str(field("checksum")?).map_err(|e| damaged(e.to_string()))?;
    let text = field(name)?;
    if checksum(text) != sum {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    serde_json::from_str(text).map_err(|e| damaged(e.to_string()))
}
