//! The CPU watch: how libtorch's threads wait for each other, by whether other programs use the CPUs too.
//!
//! After every operation libgomp's threads wait for the slowest of them in a loop. That is fast while each has a CPU to itself.
//! Where another program takes one, the loops eat the time that the slowest thread needs, and a step takes three to seventeen
//! times as long. Threads that sleep instead keep their speed beside others, and lose up to half of it alone. So a run measures
//! how long it waits for a CPU, and changes from one to the other.
//!
//! libgomp decides by a rule: threads loop 100 times, then sleep, while it has more threads than there are CPUs.
//! <https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html> One more team of threads, which does nothing, brings that about,
//! and is undone when it ends. The numbers of a step are the same either way.

use std::env;
use std::fs;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

/// How often to look.
const INTERVAL: Duration = Duration::from_millis(500);

/// Fraction of the time in which a thread could run and has no CPU, above which the threads sleep. One busy program on two CPUs makes
/// it 0.3 to 0.4, a run alone 0.03.
const CROWDED: f64 = 0.2;

/// Fraction below which they loop again.
const FREE: f64 = 0.08;

/// Elements of a tensor on which libtorch uses all of its threads.
const PARALLEL: i64 = 1 << 20;

/// Chooses how the threads wait. To be used by the thread that trains.
#[derive(Debug)]
pub(crate) struct CpuWatch {
    /// When it last looked, and what the thread had had until then; none if it does not look.
    last: Option<(Instant, Turns)>,
    /// Keeps the threads asleep.
    extra: Option<ExtraTeam>,
}

impl CpuWatch {
    /// A watch for training on `device`. It does nothing on a GPU, where the user has decided by `GOMP_SPINCOUNT` or
    /// `OMP_WAIT_POLICY`, and where the system does not tell how long threads wait.
    pub(crate) fn new(device: Device) -> Self {
        let decided = ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"].iter().any(|name| env::var_os(name).is_some());
        let last = if device == Device::Cpu && !decided { Turns::of_this_thread() } else { None };
        let last = last.map(|turns| (Instant::now(), turns));
        Self { last, extra: None }
    }

    /// Looks, if it is time to, and changes how the threads wait.
    pub(crate) fn look(&mut self) {
        let Some((then, before)) = self.last else { return };
        if then.elapsed() < INTERVAL {
            return;
        }
        self.last = Turns::of_this_thread().map(|turns| (Instant::now(), turns));
        let Some((_, now)) = self.last else { return };
        let fraction = now.waited_since(before);
        if fraction > CROWDED && self.extra.is_none() {
            self.extra = ExtraTeam::start();
        } else if fraction < FREE {
            self.extra = None;
        }
    }
}

/// How long a thread has had a CPU, and has waited for one, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Turns {
    ran: u64,
    waited: u64,
}

impl Turns {
    /// None where the system does not say.
    fn of_this_thread() -> Option<Self> {
        let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
        let mut numbers = text.split(' ').map(str::parse);
        Some(Self { ran: numbers.next()?.ok()?, waited: numbers.next()?.ok()? })
    }

    /// Of the time since `earlier` in which the thread could run, the fraction in which it waited.
    fn waited_since(self, earlier: Self) -> f64 {
        let [ran, waited] = [self.ran - earlier.ran, self.waited - earlier.waited].map(|time| time as f64);
        waited / (ran + waited).max(1.0)
    }
}

/// A team of libgomp's threads that does nothing until it is dropped.
#[derive(Debug)]
struct ExtraTeam {
    /// Nothing is sent: its end is the message.
    sender: Option<Sender<()>>,
    master: Option<JoinHandle<()>>,
}

impl ExtraTeam {
    /// None where the system gives no thread.
    fn start() -> Option<Self> {
        let (sender, ended) = channel();
        let master = thread::Builder::new().name("asleep".to_owned()).spawn(move || {
            // libgomp makes a team for a thread at its first parallel operation, and ends it with the thread.
            let _ = Tensor::zeros([PARALLEL], (Kind::Float, Device::Cpu)).exp();
            let _ = ended.recv();
        });
        Some(Self { sender: Some(sender), master: Some(master.ok()?) })
    }
}

impl Drop for ExtraTeam {
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
    fn the_fraction_is_of_the_time_in_which_a_thread_could_run() {
        let turns = |ran, waited| Turns { ran, waited };
        assert_eq!(turns(700, 300).waited_since(turns(100, 100)), 0.25);
        // A thread that only slept waited for nothing.
        assert_eq!(turns(100, 100).waited_since(turns(100, 100)), 0.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_that_runs_is_seen_to() {
        let before = Turns::of_this_thread().unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {}
        let after = Turns::of_this_thread().unwrap();
        assert!(after.ran + after.waited > before.ran + before.waited);
    }

    #[test]
    fn a_team_that_sleeps_ends_when_it_is_dropped_and_computes_nothing_else_meanwhile() {
        let numbers = || {
            Vec::<f64>::try_from((Tensor::arange(1 << 18, (Kind::Double, Device::Cpu)) * 1.5).slice(0, None, None, 999))
                .unwrap()
        };
        let expected = numbers();
        let team = ExtraTeam::start().unwrap();
        assert_eq!(numbers(), expected);
        drop(team);
        assert_eq!(numbers(), expected);
    }
}
