//! Runs the steps of a plan that are not in the store, several at a time.

pub mod progress;
pub mod stop;

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tch::Device;

use crate::plan::{Plan, Step};
use crate::steps::{self, Outcome, Work};
use crate::store::Store;
use progress::Progress;
use stop::Stop;

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every step is in the store.
    Complete,
    /// The user asked to stop; what was under way is saved.
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting,
    Running,
    Done,
    Failed,
}

struct Board {
    status: Vec<Status>,
    errors: Vec<anyhow::Error>,
    stopped: bool,
}

impl Board {
    /// The next step that can start beside what runs. Steps with several threads run alone: libtorch's thread
    /// count is one number for the process, and sums depend on it.
    fn next(&self, plan: &Plan) -> Option<usize> {
        let running: Vec<&Step> = plan
            .steps
            .iter()
            .zip(&self.status)
            .filter(|(_, s)| **s == Status::Running)
            .map(|(p, _)| p)
            .collect();
        if running.iter().any(|s| s.threads > 1) {
            return None;
        }
        let ready = |step: &Step| step.inputs.iter().all(|(_, i)| self.status[*i] == Status::Done);
        let fits = |step: &Step| step.threads == 1 || running.is_empty();
        (0..plan.steps.len())
            .find(|i| self.status[*i] == Status::Waiting && ready(&plan.steps[*i]) && fits(&plan.steps[*i]))
    }

    fn running(&self) -> bool {
        self.status.contains(&Status::Running)
    }
}

/// What a run works with.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// The graph.
    pub plan: &'a Plan,
    /// Where finished steps are.
    pub store: &'a Store,
    /// Where models compute.
    pub device: Device,
    /// Whether to stop.
    pub stop: &'a Stop,
}

/// Runs what is missing with `workers` steps at a time. On an error the running steps are finished, no new ones
/// are begun, and the first error is given.
pub fn run(job: Job<'_>, workers: usize) -> Result<Ended> {
    let Job { plan, store, stop, .. } = job;
    let status: Vec<Status> = plan
        .steps
        .iter()
        .map(|s| if store.has(s) { Status::Done } else { Status::Waiting })
        .collect();
    let done = status.iter().filter(|s| **s == Status::Done).count();
    let progress = Progress::new(plan.steps.len(), done);
    if done > 0 {
        progress.say(&format!(
            "{done} of {} steps are in the store already",
            plan.steps.len()
        ));
    }
    let board = Mutex::new(Board {
        status,
        errors: Vec::new(),
        stopped: false,
    });
    let changed = Condvar::new();
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if stop.asked() {
                    progress.say("stopping: what is under way is being saved (again to end at once)");
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let workers: Vec<_> = (0..workers.max(1))
            .map(|_| scope.spawn(|| worker(job, &progress, &board, &changed)))
            .collect();
        // A worker that panicked poisons the board, which is looked at below.
        workers.into_iter().for_each(|w| drop(w.join()));
        ended.store(true, Ordering::Relaxed);
    });
    let board = board
        .into_inner()
        .map_err(|_| anyhow!("a worker panicked; this is a defect of unsay, please report it"))?;
    match board.errors.into_iter().next() {
        Some(error) => Err(error),
        None if board.stopped => Ok(Ended::Stopped),
        None => Ok(Ended::Complete),
    }
}

fn worker(job: Job<'_>, progress: &Progress, board: &Mutex<Board>, changed: &Condvar) {
    let Job { plan, stop, .. } = job;
    loop {
        let Ok(mut state) = board.lock() else { return };
        let index = loop {
            if stop.asked() || state.stopped || !state.errors.is_empty() {
                state.stopped |= stop.asked();
                return;
            }
            match state.next(plan) {
                Some(i) => break i,
                None if !state.running() => return,
                None => match changed.wait(state) {
                    Ok(s) => state = s,
                    Err(_) => return,
                },
            }
        };
        state.status[index] = Status::Running;
        drop(state);
        let result = run_step(job, &plan.steps[index], progress);
        let Ok(mut state) = board.lock() else { return };
        state.status[index] = match result {
            Ok(Outcome::Done) => Status::Done,
            Ok(Outcome::Stopped) => {
                state.stopped = true;
                Status::Waiting
            }
            Err(error) => {
                state.errors.push(error);
                Status::Failed
            }
        };
        changed.notify_all();
    }
}

fn run_step(job: Job<'_>, step: &Step, progress: &Progress) -> Result<Outcome> {
    let Job {
        plan,
        store,
        device,
        stop,
    } = job;
    let threads = i32::try_from(step.threads).unwrap_or(1);
    tch::set_num_threads(threads);
    let begun = Instant::now();
    let meter = progress.meter(&step.title);
    let dir = store.work_dir(step)?;
    let work = Work {
        plan,
        step,
        store,
        dir,
        meter: &meter,
        stop,
        device,
        say: &|line| meter.say(line),
    };
    // A panic in a step is a defect, but it must not take the other steps' work with it.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| steps::run(&work)))
        .unwrap_or_else(|_| {
            Err(anyhow!(
                "the step panicked; this is a defect of unsay, please report it"
            ))
        })
        .with_context(|| format!("step `{}` failed", step.title))?;
    if outcome == Outcome::Done {
        let wall_secs = begun.elapsed().as_secs_f64();
        store.finish(plan, step, wall_secs)?;
        meter.finish(wall_secs);
    }
    Ok(outcome)
}
