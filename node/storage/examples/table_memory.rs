//! Compares what a table says that it takes with what the process takes, and how long its slowest changes are.
//!
//!     cargo run --release -p kv-storage --example table_memory [KEYS] [VALUE_BYTES] [SHARE_WITH_TTL_PERCENT]

use kv_proto::{effect::Expiry, ids::Lsn};
use kv_storage::table::{Entry, Table, Walk};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn key_of(number: u64) -> [u8; 16] {
    let mut key = [b'k'; 16];
    key[8..].copy_from_slice(&number.to_le_bytes());
    key
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let keys = numbers.next().unwrap_or(1_000_000);
    let value = vec![b'v'; numbers.next().unwrap_or(64) as usize];
    let with_ttl = numbers.next().unwrap_or(0);
    let before = resident_bytes();
    let (mut table, mut slowest, start) = (Table::default(), Duration::ZERO, Instant::now());
    for number in 0..keys {
        let expires = if number % 100 < with_ttl { Expiry::from_ms(1 + number) } else { None };
        let one = Instant::now();
        table.put(&key_of(number), Entry { lsn: Lsn(number + 1), expires, content_type: "", value: &value });
        slowest = slowest.max(one.elapsed());
    }
    let took = start.elapsed();
    let (resident, accounted) = (resident_bytes() - before, table.memory_bytes());
    let each = |bytes: u64| bytes as f64 / keys as f64;
    println!("{keys} keys of 16 bytes, values of {} bytes, {with_ttl} % with a TTL", value.len());
    println!("resident  {:6.1} bytes a key", each(resident));
    println!("accounted {:6.1} bytes a key ({:.3} of resident)", each(accounted), accounted as f64 / resident as f64);
    println!("put       {:6.0} ns on average, {slowest:?} at most", took.as_nanos() as f64 / keys as f64);
    let (start, mut found) = (Instant::now(), 0);
    for number in 0..keys {
        found += u64::from(table.get(&key_of(number)).is_some());
    }
    println!("get       {:6.0} ns on average, {found} found", start.elapsed().as_nanos() as f64 / keys as f64);
    let (mut walk, mut slices, mut slowest, start) = (Walk::new(), 0, Duration::ZERO, Instant::now());
    loop {
        let (one, mut seen) = (Instant::now(), 0);
        let done = walk.next_chunk(&table, 64 * 1024, &mut |_, entry| seen += entry.value.len());
        (slices, slowest) = (slices + 1, slowest.max(one.elapsed()));
        if done {
            break;
        }
    }
    println!("walk      {:?} in {slices} slices of 64 KiB, {slowest:?} at most", start.elapsed());
    for number in 0..keys {
        table.remove(&key_of(number));
    }
    println!("emptied   {} bytes accounted, {} resident", table.memory_bytes(), resident_bytes() - before);
}
