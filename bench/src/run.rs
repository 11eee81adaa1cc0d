//! A run: its phases one after the other, and what they came to.

use crate::{
    conductor::{Blow, Conductor, Interrupt, Phase, Sinks},
    engine::Setup,
    force::{Force, Step, share},
    kill::{Killed, Victims},
    options::{Load, RunOptions},
    session::{Extras, Session},
    verify::{Judge, Verdict, Window},
    workers::Workers,
};
use anyhow::{Context, ensure};
use std::sync::Arc;

/// What became of a run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) load: Option<Phase>,
    /// `None` when something before it was interrupted.
    pub(crate) run: Option<Phase>,
    pub(crate) verdict: Option<Verdict>,
    /// Who was killed, or why nobody was; and how long each partition went without a write.
    pub(crate) killed: Option<(Result<Killed, String>, Vec<Window>)>,
    /// Nodes that lead, or servers; and executors of theirs.
    pub(crate) nodes: usize,
    pub(crate) places: usize,
    /// Whether a person ended it.
    pub(crate) interrupted: bool,
}

/// Runs the load that is asked for.
///
/// # Errors
/// When it cannot begin, or a file cannot be written.
pub(crate) async fn run(options: &RunOptions, load: &Load, sinks: &mut Sinks) -> anyhow::Result<Outcome> {
    let victims = match options.kill_leader_at {
        Some(_) => Some(Victims::find(&options.cluster).await?),
        None => None,
    };
    let extras = Extras {
        verify_keys: options.verify.then_some(options.verify_keys),
        windows_of: victims.as_ref().map(Victims::partitions),
    };
    let (force, setup, _follower, nodes, places) = if options.workers == 1 {
        let share = share(load.connections, options.load.threads, 0, 1);
        let session = Session::open(&options.target, load, &options.load, extras, share).await?;
        let Session { setup, crew, follower, nodes, places } = session;
        (Force::Threads(Box::new(crew)), Some(setup), Some(follower), nodes, places)
    } else {
        let workers = Workers::start(options.workers).await?;
        let (nodes, places) = workers.size();
        (Force::Processes(Box::new(workers)), None, None, nodes, places)
    };
    if let (Some(victims), Some(setup)) = (&victims, &setup) {
        let cluster = setup.routes.current().1.cluster;
        ensure!(
            cluster.is_none_or(|cluster| cluster == victims.cluster()),
            "{} is of another cluster than {}; --cluster names the file that `kv local` has written about this one",
            options.cluster.display(),
            options.target
        );
    }
    // Until here Ctrl-C ends the process: there is no result to save.
    let mut interrupt = Interrupt::new()?;
    let mut outcome = Outcome { nodes, places, ..Outcome::default() };
    let warmup = options.load.warmup;
    let mut conductor = Conductor { force, setup: setup.clone(), load, warmup, sinks, interrupt: &mut interrupt };
    let blow = options.kill_leader_at.zip(victims).map(|(at, victims)| Blow { at, victims });
    let performed = perform(options, &mut conductor, blow, &mut outcome).await;
    conductor.end();
    sinks.view.finish();
    performed.map(|()| outcome)
}

async fn perform(
    options: &RunOptions,
    conductor: &mut Conductor<'_>,
    blow: Option<Blow>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    if conductor.load.loads {
        let (phase, _) = conductor.phase(Step::Load, None, None).await?;
        outcome.interrupted |= phase.interrupted;
        outcome.load = Some(phase);
    }
    if !conductor.warmup.is_zero() && !outcome.interrupted {
        let (phase, _) = conductor.phase(Step::WarmUp, Some(conductor.warmup), None).await?;
        outcome.interrupted |= phase.interrupted;
    }
    if outcome.interrupted {
        return Ok(());
    }
    let (phase, killed) = conductor.phase(Step::Run, Some(options.load.duration), blow).await?;
    outcome.interrupted |= phase.interrupted;
    outcome.run = Some(phase);
    let Some(setup) = conductor.setup.clone() else { return Ok(()) };
    if let Some((killed, end)) = killed {
        let windows = setup.windows.as_ref().map(|windows| windows.close(end));
        outcome.killed = Some((killed, windows.unwrap_or_default()));
    }
    if options.verify {
        let (verdict, interrupted) = audit(&setup, conductor).await?;
        outcome.verdict = Some(verdict);
        outcome.interrupted |= interrupted;
    }
    Ok(())
}

/// Reads every key once more and says what everything came to; also whether a person put an end to that.
async fn audit(setup: &Arc<Setup>, conductor: &mut Conductor<'_>) -> anyhow::Result<(Verdict, bool)> {
    let judge = setup.judge.as_ref().expect("who verifies has a judge");
    judge.begin_audit();
    let (phase, _) = conductor.phase(Step::Audit, None, None).await?;
    conductor.sinks.view.note("checking the histories of single keys");
    let setup = Arc::clone(setup);
    let check = tokio::task::spawn_blocking(move || setup.judge.as_ref().map(Judge::verdict));
    let mut verdict = tokio::select! {
        verdict = check => verdict.context("the check of the histories")?.expect("the judge is there"),
        () = conductor.interrupt.insist() => unreachable!("that ends the process"),
    };
    verdict.interrupted = phase.interrupted;
    Ok((verdict, phase.interrupted))
}
