//! What the protocols in lines of text share.

use super::stream::MAX_REPLY_BYTES;
use memchr::memchr;

/// Longest line without its end that is waited for: far more than any target sends.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Longest word of a target that becomes a part of a code.
const MAX_WORD_BYTES: usize = 32;

/// The line at the front of `bytes` without its end, and its length with it; `None` as long as it is not complete.
pub(super) fn line(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, String> {
    match memchr(b'\n', bytes) {
        Some(end) => {
            let line = &bytes[..end];
            Ok(Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1)))
        }
        None if bytes.len() > MAX_LINE_BYTES => {
            Err(format!("a line is longer than {MAX_LINE_BYTES} bytes; it begins {}", shown(bytes)))
        }
        None => Ok(None),
    }
}

/// The block of `length` bytes at `start` of `bytes`, which a line end follows, and where what follows that begins; `None` as long as
/// it is not complete.
pub(super) fn block(bytes: &[u8], start: usize, length: usize) -> Result<Option<(&[u8], usize)>, String> {
    match bytes.get(start + length..start + length + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some((&bytes[start..start + length], start + length + 2))),
        Some(_) => Err(format!("{length} bytes are not followed by the end of a line")),
    }
}

/// The length of a block, if it is one that is taken.
pub(super) fn length(digits: &[u8]) -> Result<usize, String> {
    match decimal(digits).map(usize::try_from) {
        Some(Ok(length)) if length <= MAX_REPLY_BYTES => Ok(length),
        Some(_) => {
            Err(format!("a value of {} bytes is more than {MAX_REPLY_BYTES}, the most that is taken", shown(digits)))
        }
        None => Err(format!("{} is no length", shown(digits))),
    }
}

/// A number without sign.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, digit| match digit {
        b'0'..=b'9' => n.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Appends a number, without `format!`'s cost.
pub(super) fn append_decimal(out: &mut Vec<u8>, mut n: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// What errors are counted by: `prefix`, and a word of the target made harmless.
pub(super) fn code(prefix: &str, of_target: &[u8]) -> String {
    format!("{prefix}_{}", word(of_target))
}

/// A word of the target as a short one of lower-case letters, digits and `_`.
pub(super) fn word(of_target: &[u8]) -> String {
    let harmless = |b: &u8| if b.is_ascii_alphanumeric() { char::from(b.to_ascii_lowercase()) } else { '_' };
    let of_target = if of_target.is_empty() { b"error" } else { of_target };
    of_target.iter().take(MAX_WORD_BYTES).map(harmless).collect()
}

/// The beginning of what a target sent, for an error.
pub(super) fn shown(bytes: &[u8]) -> String {
    let end = bytes.len().min(80);
    format!("\"{}\"", bytes[..end].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_they_do_and_not_never() {
        for (bytes, expected) in [
            (&b""[..], Ok(None)),
            (b"abc", Ok(None)),
            (b"abc\r", Ok(None)),
            (b"abc\r\nd", Ok(Some((&b"abc"[..], 5)))),
            (b"abc\nd", Ok(Some((b"abc", 4)))),
            (b"\r\n", Ok(Some((b"", 2)))),
        ] {
            assert_eq!(line(bytes), expected);
        }
        assert_eq!(line(&vec![b'x'; MAX_LINE_BYTES]), Ok(None));
        assert!(line(&vec![b'x'; MAX_LINE_BYTES + 1]).is_err());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_made_of_them() {
        assert_eq!(length(b"67108864"), Ok(MAX_REPLY_BYTES));
        for digits in
            [&b""[..], b"-1", b"+1", b"1 ", b"x", b"67108865", b"18446744073709551615", b"18446744073709551616"]
        {
            assert!(length(digits).is_err(), "{}", shown(digits));
        }
    }

    #[test]
    fn numbers_are_written_as_they_are_read() {
        for n in [0, 7, 10, 999, 65_536, u64::MAX] {
            let mut out = Vec::new();
            append_decimal(&mut out, n);
            assert_eq!((String::from_utf8_lossy(&out).as_ref(), decimal(&out)), (n.to_string().as_str(), Some(n)));
        }
    }

    #[test]
    fn words_from_outside_are_short_and_harmless() {
        for (word, expected) in [
            ("OOM", "redis_oom"),
            ("", "redis_error"),
            ("A-b\u{7}\"", "redis_a_b__"),
            (&"x".repeat(100), &format!("redis_{}", "x".repeat(32))),
        ] {
            assert_eq!(code("redis", word.as_bytes()), expected);
        }
    }
}
