//! Groups of processes on this machine. The processes are this test program again, with another environment.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::env;
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use process_group::ProcessGroup;
use tch::{Device, Kind, Tensor};

/// Environment variable with what a process of a group does.
const TASK: &str = "GROUP_TASK";

/// The time-out of the groups.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a late process still runs when the others have given up: longer than they need to ask it.
const LATE: Duration = Duration::from_secs(3);

/// Longest time from the start of a process, or from the cause of an error, until the error.
const LIMIT: Duration = Duration::from_secs(25);

/// Not a test, but the program of the processes.
#[test]
fn member() {
    let Ok(task) = env::var(TASK) else { return };
    tch::set_num_threads(1);
    match run(&task) {
        Ok(text) => println!("\nresult: {text}"),
        Err(error) => {
            println!("\nresult: error: {error}");
            std::process::exit(1);
        }
    }
}

fn run(task: &str) -> Result<String, process_group::Error> {
    let group = ProcessGroup::from_env(TIMEOUT)?;
    let rank = group.rank();
    match task {
        "sums" => {
            let mut sum = (Tensor::arange(1 << 16, (Kind::Float, Device::Cpu)) * 0.1 + rank as f64 / 3.0).sin();
            group.all_reduce_sum(&mut sum)?;
            let mut bits = vec![0f32; 1 << 16];
            sum.copy_data(&mut bits, 1 << 16);
            let digest = bits.iter().fold(0u32, |digest, value| digest.rotate_left(5) ^ value.to_bits());
            let mut copied = Tensor::from_slice(&[rank as i64 + 7]);
            group.broadcast(&mut copied, group.world_size() - 1)?;
            let gathered = group.all_gather(&Tensor::from_slice(&[rank as f32; 2]))?;
            let bytes = group.all_gather_bytes(&vec![b'a' + rank as u8; rank])?;
            let bytes: Vec<_> = bytes.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
            group.barrier()?;
            let mut sums = [1.0, rank as f64];
            group.sum(&mut sums)?;
            Ok(format!("{digest:08x} {copied:?} {:?} {bytes:?} {sums:?}", gathered.size()))
        }
        "gradient" => {
            // The derivative of (sum of x)^2 times the rank, summed over the ranks.
            let x = Tensor::from_slice(&[1.0 + rank as f64]).set_requires_grad(true);
            let total = group.differentiable_sum(&x)?;
            (total.square() * (rank as f64 + 1.0)).sum(Kind::Double).backward();
            Ok(format!("{} {}", total.double_value(&[0]), x.grad().double_value(&[0])))
        }
        "rounds" => {
            for round in 0.. {
                group.sum(&mut [f64::from(round)])?;
                println!("\nround");
                thread::sleep(Duration::from_millis(20));
            }
            unreachable!()
        }
        "late" => {
            if rank == 1 {
                // Takes part in nothing, but runs while the others wait.
                thread::sleep(TIMEOUT + LATE);
                return Ok(String::new());
            }
            let first = group.barrier().unwrap_err();
            thread::sleep(2 * LATE);
            Ok(format!("{first}; {}", group.barrier().unwrap_err()))
        }
        _ => panic!("unknown task {task}"),
    }
}

/// The processes of a test, ended with it.
struct Members(Vec<Child>);

impl Drop for Members {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Members {
    /// What each process prints, once all have ended.
    fn outputs(mut self) -> Vec<Output> {
        std::mem::take(&mut self.0).into_iter().map(|child| child.wait_with_output().unwrap()).collect()
    }

    /// The result of each process.
    fn results(self) -> Vec<String> {
        self.outputs().iter().map(result).collect()
    }
}

fn result(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text.lines().find_map(|line| line.strip_prefix("result: "));
    result.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// A process with this rank and world size.
fn start(task: &str, rank: usize, world_size: usize, port: u16) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "member", "--nocapture"]).env(TASK, task);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", world_size.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn group(task: &str, world_size: usize) -> Members {
    let port = free_port();
    Members((0..world_size).map(|rank| start(task, rank, world_size, port)).collect())
}

#[test]
fn sums_are_the_same_on_all_ranks_and_repeatable() {
    for world_size in [1, 2, 3] {
        let results = [(); 2].map(|()| group("sums", world_size).results());
        assert_eq!(results[0], results[1]);
        assert!(results[0].iter().all(|result| *result == results[0][0]), "{results:?}");
        let ranks: usize = (0..world_size).sum();
        let expected = format!("[{world_size}, 2] {:?} [{world_size}.0, {ranks}.0]", &["", "b", "cc"][..world_size]);
        assert!(results[0][0].ends_with(&expected), "{results:?}");
    }
}

#[test]
fn autograd_differentiates_sums() {
    // x = 1 and 2; the sum is 3, and its square is weighted by 1 and 2: 2 * 3 * (1 + 2) = 18.
    assert_eq!(group("gradient", 2).results(), ["3 18", "3 18"]);
}

/// Waits until a process has made a round.
fn wait_for_round(child: &mut Child) {
    use std::io::{BufRead, BufReader};
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "round"), "the process has ended");
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn killed_and_frozen_ranks_are_named_within_the_timeout() {
    for (name, victims) in [("-KILL", [0, 2]), ("-STOP", [1, 0])] {
        // At the same time, since frozen ranks are noticed only when the time is over.
        thread::scope(|scope| {
            for victim in victims {
                scope.spawn(move || assert_named(name, victim));
            }
        });
    }
}

#[test]
fn a_rank_that_ends_after_a_failure_is_named_in_the_next() {
    let results = group("late", 2).results();
    let (first, second) = results[0].split_once("; ").unwrap();
    assert!(first.contains("all ranks still run"), "{results:?}");
    assert!(second.contains("rank 1 has ended or does not respond"), "{results:?}");
}

/// Asserts that the ranks of a group name the one that gets this signal.
fn assert_named(name: &str, victim: usize) {
    let mut members = group("rounds", 3);
    members.0.iter_mut().for_each(wait_for_round);
    signal(&members.0[victim], name);
    let start = Instant::now();
    let victim_and_others = std::mem::take(&mut members.0).into_iter().enumerate();
    let (killed, others): (Vec<_>, Vec<_>) = victim_and_others.partition(|(rank, _)| *rank == victim);
    // Ended with the test, whatever its result.
    let _victim = Members(killed.into_iter().map(|(_, child)| child).collect());
    for output in Members(others.into_iter().map(|(_, child)| child).collect()).outputs() {
        let result = result(&output);
        let expected = format!("rank {victim} has ended or does not respond");
        assert!(result.contains(&expected), "{name} {victim}: {result}");
        assert_eq!(output.status.code(), Some(1));
    }
    assert!(start.elapsed() < LIMIT, "{name} {victim}: {:?}", start.elapsed());
}

#[test]
fn another_size_a_duplicate_rank_and_a_missing_rank_are_errors() {
    let port = free_port();
    let results = Members(vec![start("sums", 0, 2, port), start("sums", 1, 3, port)]).results();
    assert!(results[0].contains("as one of 2 processes (WORLD_SIZE), but rank 1 as one of 3"), "{results:?}");
    assert!(results[1].contains("as one of 3 processes (WORLD_SIZE), but rank 0 as one of 2"), "{results:?}");

    let port = free_port();
    let mut members = Members([0, 1, 1].map(|rank| start("rounds", rank, 2, port)).into());
    let started = Instant::now();
    let duplicate = loop {
        if let Some(index) = (1..3).find(|index| members.0[*index].try_wait().unwrap().is_some()) {
            break members.0.remove(index);
        }
        assert!(started.elapsed() < LIMIT);
        thread::sleep(Duration::from_millis(50));
    };
    let text = result(&duplicate.wait_with_output().unwrap());
    assert!(text.contains("process ") && text.contains(" is rank 1 too"), "{text}");

    let started = Instant::now();
    let [first, second] = [0, 1].map(|rank| Members(vec![start("sums", rank, 2, free_port())]));
    let (first, second) = (first.results(), second.results());
    assert!(first[0].contains("rank 1 of 2 did not join within 5 s"), "{first:?}");
    assert!(second[0].contains("rank 0 does not answer at 127.0.0.1:"), "{second:?}");
    assert!(started.elapsed() < LIMIT);
}

#[test]
fn a_taken_port_is_an_error_at_once() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let results = Members(vec![start("sums", 0, 2, port)]).results();
    let expected = format!("cannot listen on port {port} for the other ranks");
    assert!(results[0].contains(&expected) && results[0].contains("MASTER_PORT"), "{results:?}");
}
