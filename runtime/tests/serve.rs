//! `runtime serve` from outside, with a model: what it answers, whom it turns away, and how it ends.

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

/// The program, and where it listens.
struct Server {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Server {
    fn start(folder: &TempDir, arguments: &[&str]) -> Self {
        let mut command = runtime(folder, "serve");
        let command = command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on http://").and_then(|rest| rest.split(',').next());
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Self { child, stderr, address }
    }

    /// A request whose answer is still to be read.
    fn begin(&self, request: &str, header: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{header}\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    /// A request to detect of which only so many bytes of the image have come.
    fn begin_slowly(&self, image: &[u8], come: usize) -> TcpStream {
        self.begin("POST /detect", &format!("Content-Length: {}", image.len()), &image[..come])
    }

    fn detect(&self, image: &[u8]) -> (u16, Value) {
        answer(self.begin_slowly(image, image.len()))
    }

    fn get(&self, path: &str) -> (u16, String) {
        answer_text(self.begin(&format!("GET {path}"), "Accept: */*", b""))
    }

    /// It ends, having been told to, and says that.
    fn expect_end(mut self, tally: &str) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().code() == Some(0) && said.contains(tally), "{said}");
    }

    fn tell_to_end(&self) {
        assert!(Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap().success());
    }
}

fn answer_text(mut stream: TcpStream) -> (u16, String) {
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn answer(stream: TcpStream) -> (u16, Value) {
    let (status, body) = answer_text(stream);
    (status, json(&body))
}

fn image(folder: &TempDir, name: &str) -> Vec<u8> {
    std::fs::read(folder.path().join(name)).unwrap()
}

#[test]
fn images_are_answered_as_detect_does_and_each_of_many_askers_gets_its_own() {
    let folder = folder();
    let (_, expected, _) = run(detect(&folder).args(["--json", "-", "1.png", "3.jpg"]));
    let mut expected = json(&expected);
    for image in expected.as_array_mut().unwrap() {
        image.as_object_mut().unwrap().remove("file");
    }
    let server = Server::start(&folder, &["--workers", "3"]);
    let images = ["1.png", "3.jpg"].map(|name| image(&folder, name));
    thread::scope(|scope| {
        for asker in 0..8 {
            let (server, images, expected) = (&server, &images, &expected);
            scope.spawn(move || {
                for turn in asker..asker + 4 {
                    assert_eq!(server.detect(&images[turn % 2]), (200, expected[turn % 2].clone()));
                }
            });
        }
    });
    server.tell_to_end();
    server.expect_end("images: 32, failed: 0");
}

#[test]
fn the_model_is_described_and_rules_are_followed() {
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
fn what_cannot_be_answered_says_why_and_the_next_image_goes_on() {
    let folder = folder();
    let server = Server::start(&folder, &["--max-pixels", "5000", "--max-bytes", "100000"]);
    let large = vec![0; 100_001];
    for (image, status, reason) in [
        (b"no image".to_vec(), 422, "its content is none of JPEG"),
        (Vec::new(), 422, "the file is empty"),
        (image(&folder, "1.png"), 413, "90 x 60 pixels are more than the limit of 5000"),
        (large.clone(), 413, "the file is longer than 100000 bytes"),
    ] {
        let (found, answer) = server.detect(&image);
        assert!(found == status && answer["error"].as_str().unwrap().contains(reason), "{found} {answer}");
    }
    // How much comes is not said before.
    let chunks = [format!("{:x}\r\n", large.len()).as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    assert_eq!(answer(server.begin("POST /detect", "Transfer-Encoding: chunked", &chunks)).0, 413);
    assert_eq!(server.get("/detect").0, 405);
    let (status, lost) = server.get("/else");
    assert!(status == 404 && json(&lost)["error"].as_str().unwrap().contains("POST /detect"), "{lost}");
    assert_eq!(answer_text(server.begin("nonsense", "Accept: */*", b"")).0, 400);

    assert_eq!(server.detect(&image(&folder, "3.jpg")).0, 200);
    server.tell_to_end();
    server.expect_end("images: 4, failed: 3");
}

#[test]
fn who_finds_no_place_is_told_to_come_again() {
    let folder = folder();
    let server = Server::start(&folder, &["--requests", "1"]);
    let image = image(&folder, "1.png");
    let mut slow = server.begin_slowly(&image, 10);
    // It has the place when its head has come.
    let began = Instant::now();
    while server.detect(&image).0 != 503 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(server.detect(&image), (503, json!({"error": "too many requests are under way; try again"})));
    assert_eq!(server.get("/health").0, 200);
    slow.write_all(&image[10..]).unwrap();
    assert_eq!(answer(slow).0, 200);
    // Who goes away leaves its place.
    drop(server.begin_slowly(&image, 10));
    let began = Instant::now();
    while server.detect(&image).0 != 200 {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn an_image_that_does_not_come_is_not_waited_for() {
    let folder = folder();
    let server = Server::start(&folder, &["--patience", "1"]);
    let (status, reason) = answer(server.begin_slowly(&image(&folder, "1.png"), 10));
    assert_eq!((status, reason), (408, json!({"error": "the image has not come within 1 s"})));
}

#[test]
fn connections_that_ask_nothing_are_closed_and_give_their_places_to_others() {
    let folder = folder();
    let server = Server::start(&folder, &["--header-timeout", "1", "--max-connections", "4"]);
    let image = image(&folder, "1.png");
    // Two send nothing, one a head without end, byte by byte, and one stays after its answer.
    let mut silent: Vec<_> = (0..2).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    let mut slow = TcpStream::connect(server.address).unwrap();
    let mut idle = TcpStream::connect(server.address).unwrap();
    write!(idle, "GET /health HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answered = [0; 12];
    idle.read_exact(&mut answered).unwrap();
    assert_eq!(&answered, b"HTTP/1.1 200");
    let began = Instant::now();
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
            began.elapsed()
        });
        // All places are taken; they are free again soon.
        assert_eq!(server.detect(&image).0, 200);
        assert!((0.5..10.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
        assert!(sending.join().unwrap() < Duration::from_secs(4), "the slow one was cut off");
    });
    silent.push(idle);
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // What is still to be read of an answer, then the end.
        let _ = stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn told_to_end_it_answers_what_is_under_way_and_waits_for_nobody_else() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let idle = TcpStream::connect(server.address).unwrap();
    let mut slow = server.begin_slowly(&image, 10);
    assert_eq!(server.detect(&image).0, 200);
    server.tell_to_end();
    let began = Instant::now();
    while TcpStream::connect(server.address).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    slow.write_all(&image[10..]).unwrap();
    assert_eq!(answer(slow).0, 200);
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
    /// A failed test leaves no server behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
