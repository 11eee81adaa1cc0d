//! How long values are.

use super::{Invalid, decimal, serialize_as_written};
use kv_proto::limits::HIGHEST_MAX_VALUE_BYTES;
use rand::{RngExt, rngs::SmallRng};
use rand_distr::{Distribution, weighted::WeightedAliasIndex};
use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Longest value, in bytes.
pub(crate) const MAX_SIZE: u32 = HIGHEST_MAX_VALUE_BYTES as u32;
/// Most sizes with weights of their own.
const MAX_WEIGHTED: usize = 100_000;
/// Longest file of them, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
const MAX_WEIGHT: f64 = 1e12;

/// How long values are: `64`, `64-1024`, or `64=70,1024=25,65536=5`.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    shape: Shape,
    /// As it was given.
    written: String,
}

#[derive(Clone, Debug)]
enum Shape {
    Fixed(u32),
    Uniform { min: u32, max: u32 },
    Weighted { sizes: Vec<(u32, f64)>, pick: WeightedAliasIndex<f64> },
}

impl Sizes {
    pub(crate) fn fixed(bytes: u32) -> Sizes {
        let bytes = bytes.min(MAX_SIZE);
        Sizes { shape: Shape::Fixed(bytes), written: bytes.to_string() }
    }

    fn weighted(sizes: Vec<(u32, f64)>, written: String) -> Result<Sizes, Invalid> {
        if sizes.len() > MAX_WEIGHTED {
            return Err(Invalid(format!("{} sizes are too many; give at most {MAX_WEIGHTED}", sizes.len())));
        }
        let pick = WeightedAliasIndex::new(sizes.iter().map(|(_, weight)| *weight).collect())
            .map_err(|_| Invalid("no size has a weight above 0".to_owned()))?;
        Ok(Sizes { shape: Shape::Weighted { sizes, pick }, written })
    }

    /// Reads a histogram: lines of `BYTES WEIGHT`; what follows a `#` is a comment. `file` is what errors and results call it.
    ///
    /// # Errors
    /// With the file and the line.
    pub(crate) fn from_histogram(text: &str, file: &Path) -> Result<Sizes, Invalid> {
        let mut sizes = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let here = |what: String| Invalid(format!("{}:{}: {what}", file.display(), i + 1));
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                [] => {}
                [bytes, weight] => sizes.push((
                    size(bytes).map_err(|e| here(e.to_string()))?,
                    weight_of(weight).map_err(|e| here(e.to_string()))?,
                )),
                _ => return Err(here(format!("{:?} is not BYTES WEIGHT, as in 1024 25", line.trim()))),
            }
        }
        Sizes::weighted(sizes, format!("@{}", file.display())).map_err(|e| Invalid(format!("{}: {e}", file.display())))
    }

    /// The shortest and the longest that is drawn, in bytes.
    fn bounds(&self) -> (u32, u32) {
        match &self.shape {
            Shape::Fixed(bytes) => (*bytes, *bytes),
            Shape::Uniform { min, max } => (*min, *max),
            Shape::Weighted { sizes, .. } => {
                let drawn = || sizes.iter().filter(|(_, weight)| *weight > 0.0).map(|(bytes, _)| *bytes);
                (drawn().min().unwrap_or(0), drawn().max().unwrap_or(0))
            }
        }
    }

    /// The shortest that is drawn, in bytes.
    pub(crate) fn min(&self) -> u32 {
        self.bounds().0
    }

    /// The longest that is drawn, in bytes.
    pub(crate) fn max(&self) -> u32 {
        self.bounds().1
    }

    #[cfg(test)]
    /// In bytes.
    pub(crate) fn mean(&self) -> f64 {
        match &self.shape {
            Shape::Fixed(bytes) => f64::from(*bytes),
            Shape::Uniform { min, max } => (f64::from(*min) + f64::from(*max)) / 2.0,
            Shape::Weighted { sizes, .. } => {
                let sum: f64 = sizes.iter().map(|(_, weight)| weight).sum();
                sizes.iter().map(|(bytes, weight)| f64::from(*bytes) * weight / sum).sum()
            }
        }
    }

    #[inline]
    pub(crate) fn draw(&self, rng: &mut SmallRng) -> u32 {
        match &self.shape {
            Shape::Fixed(bytes) => *bytes,
            Shape::Uniform { min, max } => rng.random_range(*min..=*max),
            Shape::Weighted { sizes, pick } => sizes[pick.sample(rng)].0,
        }
    }
}

fn size(text: &str) -> Result<u32, Invalid> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // Digits that are no number are too many.
    match digits.then(|| text.parse().unwrap_or(u32::MAX)) {
        Some(bytes @ 0..=MAX_SIZE) => Ok(bytes),
        Some(_) => Err(Invalid(format!("{text} bytes are too many; values have at most {MAX_SIZE}"))),
        None => {
            Err(Invalid(format!("{text:?} is no number of bytes; write sizes as 64, 64-1024, 64=70,1024=30 or @FILE")))
        }
    }
}

fn weight_of(text: &str) -> Result<f64, Invalid> {
    decimal(text)
        .filter(|weight| *weight <= MAX_WEIGHT)
        .ok_or_else(|| Invalid(format!("{text:?} is no weight; write a number, as in 64=70")))
}

impl FromStr for Sizes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.contains('=') {
            let pair = |part: &str| {
                let (bytes, weight) = part
                    .split_once('=')
                    .ok_or_else(|| Invalid(format!("{part:?} has no weight; write one for each, as in 64=70")))?;
                Ok((size(bytes.trim())?, weight_of(weight.trim())?))
            };
            let sizes = text.split(',').map(pair).collect::<Result<Vec<_>, Invalid>>()?;
            let written: Vec<_> = sizes.iter().map(|(bytes, weight)| format!("{bytes}={weight}")).collect();
            return Sizes::weighted(sizes, written.join(","));
        }
        let Some((min, max)) = text.split_once('-') else { return size(text).map(Sizes::fixed) };
        let (min, max) = (size(min.trim())?, size(max.trim())?);
        if min > max {
            return Err(Invalid(format!("{min}-{max} ends before it begins; write {max}-{min}")));
        }
        Ok(Sizes { shape: Shape::Uniform { min, max }, written: format!("{min}-{max}") })
    }
}

/// As it can be read again, given the file if there is one.
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

serialize_as_written!(Sizes);

/// Sizes as the command line gives them: there, or in a file.
#[derive(Clone, Debug)]
pub(crate) enum SizesSource {
    Here(Sizes),
    File(PathBuf),
}

impl FromStr for SizesSource {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.strip_prefix('@') {
            Some("") => Err(Invalid("there is no file name behind the @".to_owned())),
            Some(file) => Ok(SizesSource::File(file.into())),
            None => text.parse().map(SizesSource::Here),
        }
    }
}

impl SizesSource {
    /// Reads the file, if there is one.
    ///
    /// # Errors
    /// With the file, and the line if it is one of them.
    pub(crate) fn read(self) -> Result<Sizes, Invalid> {
        let file = match self {
            SizesSource::Here(sizes) => return Ok(sizes),
            SizesSource::File(file) => file,
        };
        let cannot = |e: std::io::Error| Invalid(format!("cannot read sizes of values from {}: {e}", file.display()));
        let mut text = String::new();
        let opened = std::fs::File::open(&file).map_err(cannot)?;
        std::io::Read::read_to_string(&mut std::io::Read::take(opened, MAX_FILE_BYTES + 1), &mut text)
            .map_err(cannot)?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(Invalid(format!("{} is longer than {MAX_FILE_BYTES} bytes", file.display())));
        }
        Sizes::from_histogram(&text, &file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::rng;

    fn parse(text: &str) -> Result<Sizes, Invalid> {
        text.parse::<SizesSource>()?.read()
    }

    #[test]
    fn sizes_are_read_and_written() {
        for (text, written, max, mean) in [
            ("0", "0", 0, 0.0),
            ("64", "64", 64, 64.0),
            ("16777216", "16777216", MAX_SIZE, f64::from(MAX_SIZE)),
            ("64-1024", "64-1024", 1024, 544.0),
            ("7-7", "7-7", 7, 7.0),
            ("64=70, 1024=25,65536=5", "64=70,1024=25,65536=5", 65536, 3577.6),
            ("64=1,1024=0", "64=1,1024=0", 64, 64.0),
        ] {
            let sizes = parse(text).expect(text);
            assert_eq!((sizes.to_string().as_str(), sizes.max()), (written, max), "{text}");
            assert!((sizes.mean() - mean).abs() < 1e-6, "{text}: {}", sizes.mean());
            assert_eq!(serde_json::to_value(&sizes).expect("JSON"), written);
        }
    }

    #[test]
    fn what_is_no_size_is_told_why() {
        for (text, said) in [
            ("", "\"\" is no number of bytes"),
            ("64K", "\"64K\" is no number of bytes"),
            ("16777217", "at most 16777216"),
            ("99999999999999999999", "at most 16777216"),
            ("-5", "\"\" is no number of bytes"),
            ("1024-64", "write 64-1024"),
            ("64=70,1024", "\"1024\" has no weight"),
            ("64=x", "\"x\" is no weight"),
            ("64=0", "no size has a weight above 0"),
            ("@", "no file name"),
            ("@/no/such/file", "/no/such/file: No such file"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_is_read_and_its_mistakes_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sizes.txt");
        let source = format!("@{}", file.display());
        std::fs::write(&file, "# production, last week\n64 70\n\n1024 25.5 # most pages\n65536\t5\n").expect("written");
        let sizes = parse(&source).expect("valid");
        assert_eq!((sizes.max(), sizes.to_string()), (65536, source.clone()));
        for (text, said) in [
            ("64 70\n1024\n", "sizes.txt:2: \"1024\" is not BYTES WEIGHT"),
            ("# x\n\n64 many\n", "sizes.txt:3: \"many\" is no weight"),
            ("16777217 1", "sizes.txt:1: 16777217 bytes are too many"),
            ("# nothing\n", "sizes.txt: no size has a weight"),
        ] {
            std::fs::write(&file, text).expect("written");
            let error = parse(&source).expect_err(text).to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
        std::fs::write(&file, [0xff, 0xfe]).expect("written");
        assert!(parse(&source).expect_err("no text").to_string().contains("sizes.txt"));
    }

    #[test]
    fn lengths_come_as_often_as_they_should() {
        for text in ["64", "64-1024", "64=70,1024=25,65536=5", "0-1"] {
            let (sizes, mut rng) = (parse(text).expect(text), rng(1, 0));
            let drawn: Vec<_> = (0..200_000).map(|_| sizes.draw(&mut rng)).collect();
            let mean = drawn.iter().map(|n| f64::from(*n)).sum::<f64>() / drawn.len() as f64;
            assert!((mean / sizes.mean() - 1.0).abs() < 0.03, "{text}: {mean} is not {}", sizes.mean());
            assert_eq!(drawn.iter().max(), Some(&sizes.max()), "{text}");
        }
    }
}
