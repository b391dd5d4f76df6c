//! `runtime serve` with a model: responses, limits and shutdown.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

mod fixture;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use fixture::{detect, folder, json, run, runtime};

/// A running server.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Server {
    fn start(folder: &TempDir, arguments: &[&str]) -> Self {
        Self::start_with(runtime(folder, "serve"), arguments)
    }

    fn start_with(mut command: Command, arguments: &[&str]) -> Self {
        let command = command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on http://").and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Self { child, stderr, address }
    }

    /// Sends a request. The response is to be read from the stream.
    fn send(&self, request: &str, header: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    /// Starts to send an image, of which only the first `sent` bytes are sent.
    fn send_image(&self, image: &[u8], sent: usize) -> TcpStream {
        self.send("POST /detect", &format!("Content-Length: {}", image.len()), &image[..sent])
    }

    fn detect(&self, image: &[u8]) -> (u16, Value) {
        read_json(self.send_image(image, image.len()))
    }

    fn get(&self, path: &str) -> (u16, String) {
        read_text(self.send(&format!("GET {path}"), "Accept: */*", b""))
    }

    /// Expects exit code 0 and `summary` on stderr.
    fn expect_end(mut self, summary: &str) {
        let mut text = String::new();
        self.stderr.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().code() == Some(0) && text.contains(summary), "{text}");
    }

    fn terminate(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }
}

fn read_text(mut stream: TcpStream) -> (u16, String) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn read_json(stream: TcpStream) -> (u16, Value) {
    let (status, body) = read_text(stream);
    (status, json(&body))
}

fn image(folder: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(name)).unwrap()
}

#[test]
fn concurrent_clients_get_the_results_of_detect_for_their_images() {
    let folder = folder();
    let (_, expected, _) = run(detect(&folder).args(["--json", "-", "1.png", "3.jpg"]));
    let mut expected = json(&expected);
    for image in expected.as_array_mut().unwrap() {
        image.as_object_mut().unwrap().remove("file");
    }
    let server = Server::start(&folder, &["--workers", "3"]);
    let images = ["1.png", "3.jpg"].map(|name| image(&folder, name));
    thread::scope(|scope| {
        for client in 0..8 {
            let (server, images, expected) = (&server, &images, &expected);
            scope.spawn(move || {
                for request in client..client + 4 {
                    assert_eq!(server.detect(&images[request % 2]), (200, expected[request % 2].clone()));
                }
            });
        }
    });
    server.terminate();
    server.expect_end("images: 32, failed: 0");
}

#[test]
fn a_slow_image_delays_no_others() {
    let folder = folder();
    std::fs::write(folder.path().join("tiny.onnx"), fixture::tiny_model()).unwrap();
    image::RgbImage::new(7000, 7000).save(folder.path().join("slow.png")).unwrap();
    let mut command = fixture::program(&folder);
    command.args(["serve", "--model", "tiny.onnx", "--max-bytes", "200000000"]);
    let server = Server::start_with(command, &["--workers", "2"]);
    let (slow, fast) = (image(&folder, "slow.png"), image(&folder, "1.png"));
    // All are sent before the first response is read.
    let slow = server.send_image(&slow, slow.len());
    let others: Vec<_> = (0..40).map(|_| server.send_image(&fast, fast.len())).collect();
    for other in others {
        assert_eq!(read_json(other).0, 200);
    }
    slow.set_nonblocking(true).unwrap();
    let pending = slow.peek(&mut [0]).unwrap_err();
    assert_eq!(pending.kind(), std::io::ErrorKind::WouldBlock, "the slow image was done before the others");
    slow.set_nonblocking(false).unwrap();
    assert_eq!(read_json(slow).0, 200);
}

#[test]
fn the_model_is_described_and_thresholds_are_applied() {
    let folder = folder();
    let server = Server::start(&folder, &["--classes", "a/b", "--max-detections", "3"]);
    assert_eq!(server.get("/health"), (200, "ok".to_owned()));
    let (status, model) = server.get("/model");
    let model = json(&model);
    assert_eq!((status, &model["provider"], &model["spec"]["classes"][1]["name"]), (200, &"cpu".into(), &"a/b".into()));
    assert_eq!(model["spec"]["postprocessing"]["max_detections"], 3);
    let (_, found) = server.detect(&image(&folder, "1.png"));
    let labels: Vec<_> = found["detections"].as_array().unwrap().iter().map(|found| found["label"].clone()).collect();
    assert_eq!(labels, ["a/b", "a/b", "a/b"]);
}

#[test]
fn bad_requests_get_an_error_and_do_not_affect_the_next() {
    let folder = folder();
    let server = Server::start(&folder, &["--max-pixels", "5000", "--max-bytes", "100000"]);
    let large = vec![0; 100_001];
    for (image, status, reason) in [
        (b"no image".to_vec(), 422, "not a JPEG, PNG"),
        (Vec::new(), 422, "the file is empty"),
        (image(&folder, "1.png"), 413, "90x60 pixels exceed the limit of 5000 pixels"),
        (large.clone(), 413, "the file is larger than the limit of 100000 bytes"),
    ] {
        let (found, answer) = server.detect(&image);
        assert!(found == status && answer["error"].as_str().unwrap().contains(reason), "{found} {answer}");
    }
    // Chunked requests do not declare their length.
    let chunks = [format!("{:x}\r\n", large.len()).as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    assert_eq!(read_json(server.send("POST /detect", "Transfer-Encoding: chunked", &chunks)).0, 413);
    assert_eq!(server.get("/detect").0, 405);
    let (status, error) = server.get("/else");
    assert!(status == 404 && json(&error)["error"].as_str().unwrap().contains("POST /detect"), "{error}");
    assert_eq!(read_text(server.send("nonsense", "Accept: */*", b"")).0, 400);

    assert_eq!(server.detect(&image(&folder, "3.jpg")).0, 200);
    server.terminate();
    server.expect_end("images: 4, failed: 3");
}

#[test]
fn requests_above_the_limit_get_503() {
    let folder = folder();
    let server = Server::start(&folder, &["--requests", "1"]);
    let image = image(&folder, "1.png");
    let mut slow = server.send_image(&image, 10);
    // The slow request counts as soon as its header has arrived.
    let start = Instant::now();
    while server.detect(&image).0 != 503 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(server.detect(&image), (503, json!({"error": "too many requests in progress; try again"})));
    assert_eq!(server.get("/health").0, 200);
    slow.write_all(&image[10..]).unwrap();
    assert_eq!(read_json(slow).0, 200);
    // A client that disconnects no longer counts.
    drop(server.send_image(&image, 10));
    let start = Instant::now();
    while server.detect(&image).0 != 200 {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn an_image_that_arrives_too_slowly_gets_408() {
    let folder = folder();
    let server = Server::start(&folder, &["--patience", "1"]);
    let (status, reason) = read_json(server.send_image(&image(&folder, "1.png"), 10));
    assert_eq!((status, reason), (408, json!({"error": "the image did not arrive within 1 s"})));
}

#[test]
fn idle_connections_are_closed_and_make_room_for_others() {
    let folder = folder();
    let server = Server::start(&folder, &["--header-timeout", "1", "--max-connections", "4"]);
    let image = image(&folder, "1.png");
    // Two send nothing, one sends an endless header byte by byte, and one stays open after its response.
    let mut silent: Vec<_> = (0..2).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let mut slow = TcpStream::connect(server.address).unwrap();
    let mut idle = TcpStream::connect(server.address).unwrap();
    write!(idle, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut status_line = [0; 12];
    idle.read_exact(&mut status_line).unwrap();
    assert_eq!(&status_line, b"HTTP/1.1 200");
    let start = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            for byte in
                b"GET /health HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
            {
                if slow.write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(Duration::from_millis(50));
            }
            start.elapsed()
        });
        // The connection limit is reached, until the idle connections are closed.
        assert_eq!(server.detect(&image).0, 200);
        assert!((0.5..10.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
        assert!(sending.join().unwrap() < Duration::from_secs(4), "the slow connection was not closed in time");
    });
    silent.push(idle);
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // Reads the rest of the response, up to the end of the connection.
        let _ = stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn shutdown_finishes_requests_in_progress_and_closes_idle_connections() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let idle = TcpStream::connect(server.address).unwrap();
    let mut slow = server.send_image(&image, 10);
    assert_eq!(server.detect(&image).0, 200);
    server.terminate();
    let start = Instant::now();
    while TcpStream::connect(server.address).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    slow.write_all(&image[10..]).unwrap();
    assert_eq!(read_json(slow).0, 200);
    server.expect_end("images: 2, failed: 0");
    drop(idle);
}

#[test]
fn an_address_in_use_is_an_error_before_the_model_is_opened() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let address = server.address.to_string();
    let (code, _, stderr) = run(runtime(&folder, "serve").args(["--listen", &address]));
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("cannot listen on `{address}`: ")) && stderr.contains("--listen"), "{stderr}");
}

impl Drop for Server {
    /// Also after a failed test, no server remains.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
