//! Numbers for people.

use std::time::Duration;

/// A number with commas between its thousands.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds in the unit that fits.
pub(crate) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// A stretch of time in whole seconds, as short as people say it.
pub(crate) fn seconds(time: Duration) -> String {
    let s = time.as_secs();
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
        for (us, text) in [(0, "0 us"), (999, "999 us"), (1500, "1.50 ms"), (2_000_000, "2.00 s")] {
            assert_eq!(micros(us), text);
        }
        for (s, text) in [(0, "0 s"), (119, "119 s"), (120, "2m00s"), (3661, "61m01s"), (7322, "2h02m")] {
            assert_eq!(seconds(Duration::from_secs(s)), text);
        }
    }
}
