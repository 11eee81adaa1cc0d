//! `make bench-wal`: how fast the log is beside a bare loop of write and sync, in interleaved rounds.
//!
//! `BENCH_DIR=/path` chooses the disk (by default the folder for temporary files), `BENCH_SECONDS=5` how long each part of a round takes.

use kv_node::bench_wal::{Measured, bare_loop, log_writers};
use std::{error::Error, path::PathBuf, time::Duration};

const ROUNDS: usize = 3;
const WRITERS: [usize; 3] = [1, 16, 256];

fn rate(measured: &Measured) -> f64 {
    measured.writes as f64 / measured.elapsed.as_secs_f64()
}

fn print(name: &str, measured: &Measured, bare: Option<f64>) {
    let at = |part: f64| measured.latencies_us.get((measured.latencies_us.len() as f64 * part) as usize).unwrap_or(&0);
    let per_batch = measured.writes as f64 / measured.batches.max(1) as f64;
    let ratio = bare.map(|bare| format!("{:.2} × bare", rate(measured) / bare)).unwrap_or_default();
    println!(
        "  {name:12} {:>9.0} writes/s  {per_batch:>6.1} a sync  p50 {:>5} µs  p99 {:>6} µs  {ratio}",
        rate(measured),
        at(0.5),
        at(0.99)
    );
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::var_os("BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("kv-bench-wal-{}", std::process::id()));
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3.0);
    let duration = Duration::from_secs_f64(seconds);
    std::fs::create_dir_all(&dir)?;
    let mut ratios = vec![Vec::new(); WRITERS.len()];
    for round in 1..=ROUNDS {
        println!("round {round} of {ROUNDS}, {}", dir.display());
        let bare = bare_loop(&dir, duration)?;
        print("bare loop", &bare, None);
        for (at, writers) in WRITERS.into_iter().enumerate() {
            let measured = log_writers(&dir, writers, duration)?;
            print(&format!("{writers} writers"), &measured, Some(rate(&bare)));
            ratios[at].push(rate(&measured) / rate(&bare));
        }
    }
    println!("median of the ratios:");
    for (writers, mut ratios) in WRITERS.into_iter().zip(ratios) {
        ratios.sort_by(f64::total_cmp);
        println!("  {writers:>3} writers: {:.2} × the bare loop", ratios[ROUNDS / 2]);
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
