//! Loads Debian's package index into a running cluster, reads it back and deletes half of it, comparing byte for byte.
//!
//! The index is real text of many sizes: some 60,000 stanzas of UTF-8, from a few hundred bytes to 76 KiB.
//!
//! ```sh
//! cargo run --release                                   # a cluster, in one shell
//! cargo run --release --example load_packages           # this, in another
//! cargo run --release --example load_packages -- --input tests/data/packages-sample.txt --connections 8
//! ```

mod http;
mod phases;
mod stanzas;

use anyhow::{Context, bail};
use clap::Parser;
use phases::{Load, Phase};
use std::{path::PathBuf, process::Command, sync::Arc};

/// Load Debian's package index through the HTTP API, read it back, delete half, and compare every byte
#[derive(Parser)]
struct Options {
    /// A package index to take instead of what `apt-cache dumpavail` prints
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Take only the first stanzas
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// The router
    #[arg(long, env = "KV_CLUSTER", default_value = "http://127.0.0.1:5000")]
    url: String,
    /// Connections, each with one request at a time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let index = read_index(options.input.as_ref())?;
    let mut items = stanzas::items(&index)?;
    items.truncate(options.limit.unwrap_or(usize::MAX));
    if items.is_empty() {
        bail!("the package index is empty: run `apt-get update` first, or give another one by --input");
    }
    let key_bytes: usize = items.iter().map(|i| i.key.len()).sum();
    let value_bytes: usize = items.iter().map(|i| i.stanza.len()).sum();
    println!("{} keys of {key_bytes} bytes, values of {value_bytes} bytes", items.len());
    let load = Arc::new(Load::new(items, &options.url, options.connections.into())?);
    let mut seconds = 0.0;
    for phase in Phase::ALL {
        let done = load.clone().run(phase).await?;
        println!("{done}");
        seconds += done.seconds;
    }
    println!("all as it should be, {seconds:.1} s in all");
    Ok(())
}

fn read_index(input: Option<&PathBuf>) -> anyhow::Result<String> {
    let bytes = if let Some(path) = input {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
    } else {
        let output = Command::new("apt-cache")
            .arg("dumpavail")
            .output()
            .context("cannot run apt-cache, which Debian and its relatives have; elsewhere give --input FILE")?;
        if !output.status.success() {
            bail!("apt-cache dumpavail failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        output.stdout
    };
    String::from_utf8(bytes).context("the package index is not UTF-8")
}
