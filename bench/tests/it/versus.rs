//! Comparisons of targets.

use crate::tool::{Echo, Ran, run, run_json};

/// Delays that are long beside what a busy machine adds to them.
const DELAYS: [&str; 2] = ["--delay 50ms", "--delay 100ms"];

#[test]
fn twice_the_delay_is_half_the_rate() {
    let [fast, slow] = DELAYS.map(Echo::start);
    let ran = run_json(&format!(
        "versus --target {} --target {} --op get --no-load --connections 2 --pipeline 2 --duration 800ms --rounds 3 --view none",
        fast.url(),
        slow.url()
    ));
    assert_eq!(ran.code, Some(0), "{ran}");
    let json = &ran.json;
    assert_eq!(
        (&json["schema"], &json["complete"], &json["rounds"]),
        (&"kvbench-versus/1".into(), &true.into(), &3.into())
    );
    assert_eq!((&json["series"][0]["name"], &json["series"][1]["name"]), (&fast.url().into(), &slow.url().into()));
    assert!(json["series"][0]["ratios"].is_null(), "{ran}");
    let ratio = ran.number("/series/1/ratios/ops_per_s/median");
    assert!((0.4..=0.65).contains(&ratio), "{ratio}: {ran}");
    assert!(ran.number("/series/1/ratios/p50_us/median") > 1.5, "{ran}");
    assert!(ran.stdout.contains("| ratio") || ran.stdout.contains("ratio [min..max]"), "{ran}");
    assert!(ran.stdout.contains(&format!("ratios to {}, round by round", fast.url())), "{ran}");
    // Each target has its turn in each round.
    let turns: Vec<&str> = ran.stderr.lines().filter(|line| line.starts_with("round ")).collect();
    let expected: Vec<String> =
        (1..=3).flat_map(|round| [&fast, &slow].map(|echo| format!("round {round} of 3: {}", echo.url()))).collect();
    assert_eq!(turns, expected, "{ran}");
}

#[test]
fn a_target_that_is_not_there_is_named() {
    let echo = Echo::start("");
    for second in ["kv://127.0.0.1:1", "redis://127.0.0.1:1", "http://127.0.0.1:1"] {
        let flags = format!(
            "versus --target {} --target {second} --op get --no-load --duration 200ms --connections 1",
            echo.url()
        );
        let ran: Ran = run(&flags);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran}");
        let last = ran.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("kvbench: {second}: ")), "{ran}");
        assert!(!ran.stderr.contains("panicked"), "{ran}");
    }
}
