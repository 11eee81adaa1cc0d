//! Figures against a server whose behaviour is known.
//!
//! The machine may be busy with anything. So counts and orders are held against the tool, and times only from below, or from above
//! with much room.

use crate::tool::{Echo, Ran, run_json};

/// How much of the curve lies at or below a latency.
fn share_up_to(ran: &Ran, us: u64) -> f64 {
    let curve = ran.json["curve_us"].as_array().expect("a curve");
    let below = curve.iter().filter(|point| point[1].as_u64().is_some_and(|at| at <= us));
    below.filter_map(|point| point[0].as_f64()).fold(0.0, f64::max)
}

fn is_about(value: f64, expected: f64, share: f64) -> bool {
    (value - expected).abs() <= expected * share
}

/// Everything that was due was answered, failed, or was dropped.
fn is_complete(ran: &Ran) {
    let count = |name: &str| ran.count(&format!("/open_loop/{name}"));
    assert_eq!(ran.count("/ops") + ran.error_count() + count("dropped"), count("due"), "{ran}");
}

/// No answer can come before its delay has passed; by Little's law the rate follows from the mean latency, however busy the
/// machine is.
#[test]
fn a_delay_is_in_every_latency_and_decides_the_rate() {
    for delay_ms in [20.0, 100.0] {
        let echo = Echo::start(&format!("--delay {delay_ms}ms"));
        let target = echo.url();
        let ran = run_json(&format!(
            "run --target {target} --op get --no-load --connections 4 --pipeline 5 --duration 1500ms"
        ));
        assert_eq!(ran.code, Some(0), "{ran}");
        // Histograms keep three digits.
        let least = delay_ms * 999.0;
        for figures in ["latency_us", "service_us"] {
            let of = |name: &str| ran.number(&format!("/{figures}/{name}"));
            assert!(of("p50") >= least && of("mean") >= least && of("p99") >= least, "{figures}: {ran}");
            assert!(of("p50") < least + 100_000.0 && of("p99") < least + 400_000.0, "{figures}: {ran}");
        }
        let (slots, rate, mean_s) = (20.0, ran.number("/ops_per_s"), ran.number("/latency_us/mean") / 1e6);
        assert!(rate <= slots / (delay_ms / 1e3) * 1.01, "{ran}");
        // What a busy machine adds is little beside the longer delay.
        assert!(delay_ms < 100.0 || is_about(rate, slots / (delay_ms / 1e3), 0.15), "{ran}");
        // Operations that are under way at the end are not counted: one of about fifteen for each slot.
        assert!(is_about(rate * mean_s, slots, 0.12), "{ran}");
    }
}

#[test]
fn errors_are_counted_one_by_one() {
    let echo = Echo::start("--error-every 7");
    let target = echo.url();
    let ran = run_json(&format!("run --target {target} --op put --connections 1 --pipeline 1 --duration 1s"));
    assert_eq!(ran.code, Some(1), "{ran}");
    let (ops, errors) = (ran.count("/ops"), ran.count("/errors/overloaded"));
    assert!(errors > 0 && errors == (ops + errors) / 7, "{ran}");
    assert_eq!((ran.error_count(), ran.count("/kinds/put/errors")), (errors, errors), "{ran}");
    assert_eq!((ran.count("/outcomes/not_applied"), ran.count("/outcomes/unknown")), (errors, 0), "{ran}");
}

/// Who sends the next request only when the last is answered sends few during the stall, and hardly sees it.
#[test]
fn an_open_loop_shows_a_stall_to_all_who_came_meanwhile() {
    let stalled = |rate: &str| {
        let echo = Echo::start("--stall-at 1s --stall-for 1s");
        let target = echo.url();
        run_json(&format!(
            "run --target {target} --op get --no-load --connections 4 --pipeline 4 --duration 3s --deadline 5s {rate}"
        ))
    };
    let open = stalled("--rate 2000 --arrivals constant");
    let closed = stalled("");
    for ran in [&open, &closed] {
        assert!(ran.is_well(), "{ran}");
        assert!(ran.number("/latency_us/max") >= 900_000.0, "{ran}");
    }
    let p99 = |ran: &Ran, of: &str| ran.number(&format!("/{of}/p99"));
    // A third of all came during the stall; those of its last tenth waited for less.
    assert!(share_up_to(&open, 100_000) <= 0.8, "{open}");
    assert!(p99(&open, "latency_us") >= 900_000.0, "{open}");
    // Those waited for a connection; once it was theirs it took them no longer than others.
    assert!(p99(&open, "service_us") < p99(&open, "latency_us") / 3.0, "{open}");
    assert!(open.count("/open_loop/late") >= 1500, "{open}");
    assert!(is_about(open.number("/open_loop/due"), 6000.0, 0.01), "{open}");
    is_complete(&open);
    assert!(p99(&closed, "latency_us") < 300_000.0, "{closed}");
}

#[test]
fn a_rate_that_is_impossible_is_not_kept_and_not_hidden() {
    let echo = Echo::start("--delay 50ms");
    let (target, folder) = (echo.url(), tempfile::tempdir().expect("a folder"));
    let csv = folder.path().join("a.csv");
    let began = std::time::Instant::now();
    let ran = run_json(&format!(
        "run --target {target} --op get --no-load --connections 2 --pipeline 2 --duration 2s --deadline 500ms --rate 2000 \
         --arrivals constant --csv {}",
        csv.display()
    ));
    assert!(began.elapsed().as_secs() < 20, "it ends soon after its duration: {ran}");
    // What was never sent is no success.
    assert_eq!((ran.code, ran.error_count()), (Some(1), 0), "{ran}");
    let (slots, rate) = (4.0, ran.number("/ops_per_s"));
    assert!(rate <= slots / 0.05 * 1.01 && rate >= slots / 0.05 / 2.0, "{ran}");
    // Everything that was due was answered or dropped.
    let count = |name: &str| ran.count(&format!("/open_loop/{name}"));
    assert!(is_about(count("due") as f64, 4000.0, 0.01), "{ran}");
    is_complete(&ran);
    assert!(count("dropped") > 3000 && count("late") + 10 >= ran.count("/ops"), "{ran}");
    assert!(ran.number("/latency_us/p50") > 2.0 * ran.number("/service_us/p50"), "{ran}");
    // The last was sent up to a deadline after the end.
    assert!((2.0..4.0).contains(&ran.number("/elapsed_s")), "{ran}");
    let warnings = ran.json["warnings"].to_string();
    assert!(warnings.contains("operations were dropped") && ran.stderr.contains("operations were dropped"), "{ran}");
    assert!(ran.stdout.contains("dropped"), "{ran}");
    // What waits is never more than a deadline's worth, and that of one answer.
    let csv = std::fs::read_to_string(csv).expect("rows");
    let rows = csv.lines().filter(|line| line.starts_with("run,") && line.contains(",all,"));
    let waiting: Vec<u64> =
        rows.map(|row| row.rsplit(',').next().expect("a column").parse().expect("a number")).collect();
    assert!(waiting[0] >= 500 && waiting.iter().all(|waiting| *waiting <= 1500), "{waiting:?}");
}

/// What is due is the integral of the rate, whatever became of it.
#[test]
fn ramps_and_steps_come_to_their_integrals() {
    let echo = Echo::start("");
    let target = echo.url();
    let check = |rate: &str, duration: &str, due: f64, (arrivals, bound): (&str, f64)| {
        let ran = run_json(&format!(
            "run --target {target} --op get --no-load --connections 4 --duration {duration} --rate {rate} --arrivals {arrivals}"
        ));
        assert!(ran.is_well(), "{ran}");
        assert!(is_about(ran.number("/open_loop/due"), due, bound), "{rate} {arrivals}: {ran}");
        is_complete(&ran);
        assert_eq!(ran.json["parameters"]["rate"], rate);
    };
    for arrivals in [("constant", 0.02), ("poisson", 0.15)] {
        std::thread::scope(|scope| {
            for (rate, duration, due) in
                [("50..950", "1s", 500.0), ("250,500,750", "1200ms", 600.0), ("950..50", "1s", 500.0)]
            {
                let check = &check;
                scope.spawn(move || check(rate, duration, due, arrivals));
            }
        });
    }
}

/// How often users come follows from how long they think and wait, however busy the machine is.
#[test]
fn users_think_between_their_operations() {
    let echo = Echo::start("--delay 20ms");
    let target = echo.url();
    let ran = run_json(&format!(
        "run --target {target} --op get --no-load --connections 4 --pipeline 10 --duration 2100ms --think 180ms"
    ));
    assert_eq!((ran.code, &ran.json["parameters"]["think"]), (Some(0), &"180ms".into()), "{ran}");
    let mean_s = ran.number("/latency_us/mean") / 1e6;
    let (times, expected) = (ran.number("/ops") / 40.0, 2.1 / (0.18 + mean_s));
    // Each user may be on the way to one more.
    assert!(
        times <= 2.1 / 0.2 && times <= expected * 1.05 && times >= expected * 0.85 - 1.0,
        "{times} {expected}: {ran}"
    );
    assert!(ran.number("/latency_us/p50") < 150_000.0, "thinking is no latency: {ran}");
}
