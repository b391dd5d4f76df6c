//! Lets libtorch's threads sleep instead of spin while they wait for each other, if other programs use the CPUs too.
//!
//! After every operation, libgomp's threads spin until the slowest has finished. This is fast while each has a CPU to
//! itself. If another program uses one, the spinning threads take the time that the slowest thread needs, and a step
//! takes 3 to 17 times as long. Sleeping threads keep their speed next to other programs, but lose up to half of it
//! alone. So a run measures how long it waits for a CPU and switches between the two.
//!
//! While libgomp has more threads than there are CPUs, its threads spin only 100 times and then sleep
//! (<https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html>). A second, idle team of threads has this effect
//! until it ends. The results of a step are the same either way.

use std::env;
use std::fs;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

/// Time between two measurements.
const INTERVAL: Duration = Duration::from_millis(500);

/// The threads sleep if the training thread waits for a CPU for more than this fraction of its runnable time. Measured
/// on two CPUs: 0.3 to 0.4 with one other busy program, 0.03 alone.
const MIN_TO_SLEEP: f64 = 0.2;

/// The threads spin again below this fraction.
const MAX_TO_SPIN: f64 = 0.08;

/// Elements of a tensor that libtorch processes with all of its threads.
const PARALLEL: i64 = 1 << 20;

/// Switches between spinning and sleeping threads. Must be used by the training thread.
#[derive(Debug)]
pub(crate) struct CpuWatch {
    /// The last measurement; none if switching is disabled.
    last: Option<(Instant, CpuTimes)>,
    /// Makes the threads sleep while it exists.
    idle_team: Option<IdleTeam>,
}

impl CpuWatch {
    /// A watch for training on `device`. It does nothing on a GPU, if the user has set `GOMP_SPINCOUNT` or
    /// `OMP_WAIT_POLICY`, and if the system does not report how long threads wait.
    pub(crate) fn new(device: Device) -> Self {
        let is_set_by_user = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"].iter().any(|name| env::var_os(name).is_some());
        let last = if device == Device::Cpu && !is_set_by_user { CpuTimes::of_this_thread() } else { None };
        let last = last.map(|times| (Instant::now(), times));
        Self { last, idle_team: None }
    }

    /// Measures and switches, at most once per interval.
    pub(crate) fn update(&mut self) {
        let Some((then, before)) = self.last else { return };
        if then.elapsed() < INTERVAL {
            return;
        }
        self.last = CpuTimes::of_this_thread().map(|times| (Instant::now(), times));
        let Some((_, now)) = self.last else { return };
        let fraction = now.waiting_fraction_since(before);
        if fraction > MIN_TO_SLEEP && self.idle_team.is_none() {
            self.idle_team = IdleTeam::start();
        } else if fraction < MAX_TO_SPIN {
            self.idle_team = None;
        }
    }
}

/// Time that a thread has run on a CPU, and has waited for one, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct CpuTimes {
    running: u64,
    waiting: u64,
}

impl CpuTimes {
    /// None if the system does not report it.
    fn of_this_thread() -> Option<Self> {
        let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let mut numbers = text.split(' ').map(str::parse);
        Some(Self { running: numbers.next()?.ok()?, waiting: numbers.next()?.ok()? })
    }

    /// Fraction of the runnable time since `earlier` that the thread waited for a CPU; 0 if it only slept.
    fn waiting_fraction_since(self, earlier: Self) -> f64 {
        let times = [self.running - earlier.running, self.waiting - earlier.waiting];
        let [running, waiting] = times.map(|time| time as f64);
        waiting / (running + waiting).max(1.0)
    }
}

/// A team of libgomp threads that does nothing until it is dropped.
#[derive(Debug)]
struct IdleTeam {
    /// Dropping it ends the team; nothing is sent.
    sender: Option<Sender<()>>,
    master: Option<JoinHandle<()>>,
}

impl IdleTeam {
    /// None if no thread can be started.
    fn start() -> Option<Self> {
        let (sender, ended) = channel();
        let master = thread::Builder::new().name("idle team".to_owned()).spawn(move || {
            // libgomp creates a team for a thread at its first parallel operation, and ends it with the thread.
            let _ = Tensor::zeros([PARALLEL], (Kind::Float, Device::Cpu)).exp();
            let _ = ended.recv();
        });
        Some(Self { sender: Some(sender), master: Some(master.ok()?) })
    }
}

impl Drop for IdleTeam {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(master) = self.master.take() {
            let _ = master.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_fraction_is_relative_to_the_runnable_time() {
        let times = |running, waiting| CpuTimes { running, waiting };
        assert_eq!(times(700, 300).waiting_fraction_since(times(100, 100)), 0.25);
        assert_eq!(times(100, 100).waiting_fraction_since(times(100, 100)), 0.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn times_of_a_running_thread_increase() {
        let before = CpuTimes::of_this_thread().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {}
        let after = CpuTimes::of_this_thread().unwrap();
        assert!(after.running + after.waiting > before.running + before.waiting);
    }

    #[test]
    fn idle_team_does_not_change_results_and_ends_when_dropped() {
        let numbers = || {
            Vec::<f64>::try_from((Tensor::arange(1 << 18, (Kind::Double, Device::Cpu)) * 1.5).slice(0, None, None, 999))
                .unwrap()
        };
        let expected = numbers();
        let team = IdleTeam::start().unwrap();
        assert_eq!(numbers(), expected);
        drop(team);
        assert_eq!(numbers(), expected);
    }
}
