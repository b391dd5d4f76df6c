//! Limits of time, memory, connections and the queue, and the token.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{Response, Server, image, until};
use crate::fixture::{self, folder};

/// A server whose only worker is busy for more than a second with every image, which waits that long for another one to
/// fill its batch; and the first request.
fn busy(folder: &tempfile::TempDir, arguments: &[&str]) -> (Server, TcpStream) {
    let arguments = [&["--workers", "1", "--max-batch", "2", "--max-queue-delay", "1500000"], arguments].concat();
    let server = Server::start_tiny(folder, &arguments);
    let slow = server.begin_post("/detect", &[], &image(folder, "1.png"));
    until(|| server.metric(DECODED) == 1);
    (server, slow)
}

const DECODED: &str = r#"detector_decode_duration_seconds_count{model="tiny",version="1"}"#;

const PENDING: &str = r#"nv_inference_pending_request_count{model="tiny",version="1"}"#;

fn failures(server: &Server, reason: &str) -> u64 {
    server.metric(&format!(r#"nv_inference_request_failure{{model="tiny",reason="{reason}",version="1"}}"#))
}

#[test]
fn a_full_queue_refuses_at_once_and_clients_that_leave_free_their_slots() {
    let folder = folder();
    let (server, slow) = busy(&folder, &["--max-queue", "2"]);
    let image = image(&folder, "1.png");
    let staying = server.begin_post("/detect", &[], &image);
    let leaving = server.begin_post("/detect", &[], &image);
    until(|| server.metric(PENDING) == 2);
    let start = Instant::now();
    let refused = server.detect(&image);
    refused.expect_error(429, "queue of 2 images");
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    drop(leaving);
    until(|| failures(&server, "CANCELED") == 1);
    let next = server.begin_post("/detect", &[], &image);
    for stream in [slow, staying, next] {
        assert_eq!(Response::read(stream).status, 200);
    }
    assert_eq!((failures(&server, "REJECTED"), failures(&server, "CANCELED")), (1, 1));
    // The image of the client that left was never decoded.
    assert_eq!(server.metric(DECODED), 3);
}

#[test]
fn requests_whose_time_is_over_are_answered_and_never_decoded() {
    let folder = folder();
    let (server, slow) = busy(&folder, &[]);
    let image = image(&folder, "1.png");
    let start = Instant::now();
    let late = server.post("/detect?timeout=100000", &[], &image);
    late.expect_error(503, "not finished within 100 ms");
    assert!((0.1..3.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    server.infer("/v2/models/tiny/infer", &[&image], json!({"timeout": 1})).expect_error(503, "not finished");
    assert_eq!(Response::read(slow).status, 200);
    assert_eq!(server.post("/detect?timeout=60000000", &[], &image).status, 200);
    assert_eq!(failures(&server, "REJECTED"), 2);
    assert_eq!(server.metric(DECODED), 2);
}

#[test]
fn the_server_limits_the_time_of_all_requests() {
    let folder = folder();
    let (server, slow) = busy(&folder, &["--request-timeout", "400"]);
    server.post("/detect?timeout=60000000", &[], &image(&folder, "1.png")).expect_error(503, "within 400 ms");
    // What a worker has begun is over, too.
    Response::read(slow).expect_error(503, "within 400 ms");
}

#[test]
fn first_priority_overtakes() {
    let folder = folder();
    let (server, slow) = busy(&folder, &[]);
    let image = image(&folder, "1.png");
    let begin = |query: &str| server.begin_post(&format!("/detect{query}"), &[], &image);
    let second = begin("?priority=2");
    until(|| server.metric(PENDING) == 1);
    let first = begin("?priority=1");
    until(|| server.metric(PENDING) == 2);
    assert_eq!(Response::read(slow).status, 200);
    let queued = |stream| {
        let timing = Response::read(stream).headers["server-timing"].clone();
        timing.split("queue;dur=").nth(1).unwrap().split(',').next().unwrap().parse::<f64>().unwrap()
    };
    // The second was there before the first, and left the queue after it.
    let (second, first) = (queued(second), queued(first));
    assert!(second > first, "{second} and {first} ms");
}

#[test]
fn a_request_that_arrives_too_slowly_gets_408() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--read-timeout", "1"]);
    let started = Instant::now();
    let slow = server.begin_upload(&image(&folder, "1.png"), 10);
    Response::read(slow).expect_error(408, "did not arrive within 1 s");
    assert!(started.elapsed() < Duration::from_millis(1800), "{:?}", started.elapsed());
    assert_eq!(failures(&server, "OTHER"), 1);
}

#[test]
fn uploads_take_bounded_memory_and_declared_lengths_none() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--max-upload-bytes", "100000"]);
    let image = image(&folder, "1.png");
    // Two hundred clients that declare much more than there is, and send little.
    let head = "POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: 30000000\r\n\r\n";
    let declaring: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.detect(&image).status, 200);
    let large = vec![0; 200_000];
    server.detect(&large).expect_error(413, "--max-upload-bytes");
    assert_eq!(server.detect(&image).status, 200);
    // What base64 is decoded to counts too, whether or not the end of the JSON is declared.
    let parameters = json!({"content_type": "base64"});
    let data = ["A".repeat(60_000)];
    let input = json!({"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters, "data": data});
    let body = json!({"inputs": [input]}).to_string();
    let length = format!("Inference-Header-Content-Length: {}", body.len());
    let undeclared: &[&str] = &[];
    for headers in [undeclared, &[length.as_str()]] {
        server.post("/v2/models/tiny/infer", headers, body.as_bytes()).expect_error(413, "--max-upload-bytes");
    }
    drop(declaring);
}

#[test]
fn idle_and_slow_connections_are_closed() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--header-timeout", "1", "--idle-timeout", "3"]);
    let start = Instant::now();
    let ended_after = |mut stream: TcpStream| {
        // Reads the rest of the response, up to the end of the connection.
        let _ = stream.read_to_end(&mut Vec::new());
        start.elapsed().as_secs_f64()
    };
    let silent = server.connect();
    let mut slow = server.connect();
    let mut idle = server.connect();
    idle.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut status_line = [0; 12];
    idle.read_exact(&mut status_line).unwrap();
    assert_eq!(&status_line, b"HTTP/1.1 200");
    thread::scope(|scope| {
        scope.spawn(move || {
            for byte in b"GET /v2/health/live HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" {
                if slow.write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            assert!(ended_after(slow) < 2.9, "the slow header was not cut off");
        });
        let silent = scope.spawn(move || ended_after(silent));
        let idle = scope.spawn(move || ended_after(idle));
        assert!((0.9..2.9).contains(&silent.join().unwrap()));
        assert!((2.9..10.0).contains(&idle.join().unwrap()));
    });
}

#[test]
fn connections_beyond_the_limit_wait_until_one_closes() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--max-connections", "3", "--header-timeout", "2"]);
    let start = Instant::now();
    let _silent: Vec<_> = (0..3).map(|_| server.connect()).collect();
    assert_eq!(server.detect(&image(&folder, "1.png")).status, 200);
    assert!((1.0..10.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
}

#[test]
fn idle_connections_stay_while_nobody_waits() {
    let folder = folder();
    for max in ["1", "2"] {
        let server = Server::start_tiny(&folder, &["--max-connections", max, "--idle-timeout", "60"]);
        let mut stream = server.connect();
        for _ in 0..2 {
            stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
            // The rest of the response.
            thread::sleep(Duration::from_millis(2500));
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        }
    }
}

#[test]
fn idle_connections_give_way_when_all_are_taken() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--max-connections", "3", "--idle-timeout", "60"]);
    let _idle: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = server.connect();
            stream.write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
            let mut start = [0; 12];
            stream.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200");
            stream
        })
        .collect();
    let start = Instant::now();
    assert_eq!(server.get("/v2/health/ready").status, 200);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn five_hundred_slow_connections_cost_the_others_nothing() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &[]);
    let image = image(&folder, "1.png");
    let head = format!("POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", image.len());
    let mut slow: Vec<_> = (0..500)
        .map(|number| {
            let mut stream = server.connect();
            // Half of them are slow in the header.
            let sent = if number % 2 == 0 { &head.as_bytes()[..20] } else { head.as_bytes() };
            stream.write_all(sent).unwrap();
            stream
        })
        .collect();
    let start = Instant::now();
    for _ in 0..3 {
        for stream in slow.iter_mut().skip(1).step_by(2) {
            let _ = stream.write_all(b"a");
        }
        for _ in 0..10 {
            assert_eq!(server.detect(&image).status, 200);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(server.metric(PENDING) == 0 && failures(&server, "REJECTED") == 0);
}

#[test]
fn without_descriptors_the_server_waits_and_goes_on() {
    let folder = folder();
    std::fs::write(folder.path().join("tiny.onnx"), fixture::tiny_model()).unwrap();
    let program = fixture::program(&folder);
    let mut command = std::process::Command::new("sh");
    command.current_dir(folder.path()).args(["-c", "ulimit -n 40; exec \"$0\" serve --model tiny.onnx \"$@\""]);
    command.arg(program.get_program());
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap());
    }
    let server = Server::start_with(command, &["--header-timeout", "2"]);
    let silent: Vec<_> = (0..60).map(|_| server.connect()).collect();
    server.wait_for("cannot accept connections");
    let start = Instant::now();
    drop(silent);
    assert_eq!(server.detect(&image(&folder, "1.png")).status, 200);
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(server.stderr().matches("cannot accept").count() < 20, "{}", server.stderr());
}

#[test]
fn a_token_is_needed_except_for_health_and_metrics() {
    let folder = folder();
    std::fs::write(folder.path().join("tiny.onnx"), fixture::tiny_model()).unwrap();
    let mut command = fixture::program(&folder);
    command.args(["serve", "--model", "tiny.onnx"]).env("DETECTOR_TOKEN", "secret").env("DETECTOR_MAX_QUEUE", "7");
    let server = Server::start_with(command, &[]);
    let image = image(&folder, "1.png");
    for path in ["/v2/health/live", "/v2/health/ready", "/metrics", "/v2/models/tiny/ready"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/v2", "/model", "/v2/models/tiny", "/v2/models/tiny/stats"] {
        server.get(path).expect_error(401, "Authorization: Bearer");
    }
    for header in
        ["Accept: */*", "Authorization: Bearer secre", "Authorization: Bearer secret2", "Authorization: Basic secret"]
    {
        let response = server.post("/detect", &[header], &image);
        response.expect_error(401, "--token");
        assert_eq!(response.headers["www-authenticate"], "Bearer");
    }
    for header in ["Authorization: Bearer secret", "authorization: bearer  secret"] {
        assert_eq!(server.post("/detect", &[header], &image).status, 200);
    }
    let config = Response::read(server.send("GET /v2/models/tiny/config", &["Authorization: Bearer secret"], b""));
    assert_eq!(config.json()["max_batch_size"], 7);
    assert!(!server.stderr().contains("secret"));
}

#[test]
fn help_names_the_variables_and_not_the_token() {
    let folder = folder();
    let mut command = fixture::program(&folder);
    let (code, help, _) = fixture::run(command.args(["serve", "--help"]).env("DETECTOR_TOKEN", "secret"));
    assert_eq!(code, 0);
    for name in ["DETECTOR_TOKEN", "DETECTOR_MODEL", "DETECTOR_MAX_QUEUE_DELAY", "DETECTOR_FLIP"] {
        assert!(help.contains(name), "{name} is not in {help}");
    }
    assert!(!help.contains("secret"));
    let mut command = fixture::program(&folder);
    let (code, _, stderr) = fixture::run(command.args(["serve"]).env("DETECTOR_MAX_QUEUE", "none"));
    assert!(code == 2 && stderr.contains("max-queue"), "{stderr}");
}
