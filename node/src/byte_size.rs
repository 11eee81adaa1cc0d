//! A number of bytes as a person writes it: `4096`, `64MiB`, `1 GiB`.

use std::{fmt, str::FromStr};

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Whole mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        ByteSize(n << 20)
    }
}

/// A text that says no number of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidByteSize {
    /// Another form.
    #[error("{0:?} is no size: write a whole number of bytes, or one with KiB, MiB or GiB behind it, as in 64MiB")]
    Form(String),
    /// Too much.
    #[error("{0:?} is more than 2^64 bytes")]
    TooLarge(String),
}

impl FromStr for ByteSize {
    type Err = InvalidByteSize;

    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let of_unit = |(name, unit): &(&str, u64)| Some((text.strip_suffix(name)?.trim_end(), *unit));
        let (number, unit) = UNITS.iter().find_map(of_unit).unwrap_or((text, 1));
        if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(InvalidByteSize::Form(text.to_owned()));
        }
        // Digits that are no u64 are too many.
        let bytes = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
        bytes.map(ByteSize).ok_or_else(|| InvalidByteSize::TooLarge(text.to_owned()))
    }
}

/// In the largest unit of which it is a whole number, so that it is read as what it was.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => f.pad(&format!("{}{name}", self.0 / unit)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_as_they_were() {
        for (text, bytes, written) in [
            ("0", 0, "0"),
            ("1000", 1000, "1000"),
            ("4096", 4096, "4KiB"),
            ("64MiB", 64 << 20, "64MiB"),
            ("1536 KiB", 1536 << 10, "1536KiB"),
            ("1024MiB", 1 << 30, "1GiB"),
            ("3GiB", 3 << 30, "3GiB"),
            ("18446744073709551615", u64::MAX, "18446744073709551615"),
        ] {
            let size: ByteSize = text.parse().expect(text);
            assert_eq!((size, size.to_string().as_str()), (ByteSize(bytes), written), "{text}");
            assert_eq!(written.parse(), Ok(size));
        }
        assert_eq!(ByteSize::mib(64).to_string(), "64MiB");
    }

    #[test]
    fn what_is_no_size_is_told_how_one_is_written() {
        for text in ["", "MiB", " 1", "-1", "+1", "1.5GiB", "64MB", "64mib", "64M", "0x10", "1 000", "1KiBKiB"] {
            let refused = text.parse::<ByteSize>().expect_err(text).to_string();
            assert!(refused.starts_with(&format!("{text:?} is no size")) && refused.contains("64MiB"), "{refused}");
        }
        for text in ["18446744073709551616", "18446744073709551615KiB", "17179869184GiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(InvalidByteSize::TooLarge(text.to_owned())));
        }
    }
}
