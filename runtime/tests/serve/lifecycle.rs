//! Starting, readiness and stopping.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{Response, Server, image, until};
use crate::fixture::{self, folder, run, runtime};

#[test]
fn shutdown_answers_accepted_requests_and_closes_idle_connections() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let idle = server.connect();
    let mut slow = server.begin_upload(&image, 10);
    assert_eq!(server.detect(&image).status, 200);
    server.kill("TERM");
    until(|| TcpStream::connect(server.address).is_err());
    slow.write_all(&image[10..]).unwrap();
    assert_eq!(Response::read(slow).status, 200);
    let (code, stderr) = server.wait();
    assert!(code == Some(0) && stderr.contains("finishing the requests in progress"), "{stderr}");
    drop(idle);
}

#[test]
fn a_server_that_is_stopping_is_not_ready_but_takes_requests_for_the_delay() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--drain-delay", "2"]);
    server.kill("TERM");
    until(|| server.get("/v2/health/ready").status == 503);
    assert_eq!(server.get("/v2/models/tiny/ready").status, 503);
    assert_eq!(server.get("/v2/health/live").status, 200);
    assert_eq!(server.detect(&image(&folder, "1.png")).status, 200);
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn under_load_every_accepted_request_is_answered_at_the_end() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &[]);
    let image = image(&folder, "1.png");
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Until the server accepts no more connections.
                while let Ok(mut stream) = TcpStream::connect(server.address) {
                    let head = format!(
                        "POST /detect HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                        image.len()
                    );
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&image));
                    let mut bytes = Vec::new();
                    let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
                    match bytes.starts_with(b"HTTP/1.1 200") {
                        true => answered.fetch_add(1, SeqCst),
                        // The system accepted the connection after the server had looked for the last time.
                        false => {
                            assert!(bytes.is_empty(), "{:?}", String::from_utf8_lossy(&bytes));
                            refused.fetch_add(1, SeqCst)
                        }
                    };
                }
            });
        }
        thread::sleep(Duration::from_millis(500));
        server.kill("TERM");
    });
    assert!(answered.load(SeqCst) > 16 && refused.load(SeqCst) <= 8, "{answered:?} {refused:?}");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn requests_that_are_not_finished_within_the_grace_period_end_with_1() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--grace", "1"]);
    let _slow = server.begin_upload(&image(&folder, "1.png"), 10);
    // The header has arrived when another request is answered.
    server.get("/v2");
    let start = Instant::now();
    server.kill("TERM");
    let (code, stderr) = server.wait();
    assert!(code == Some(1) && stderr.contains("within 1 s; raise --grace"), "{code:?} {stderr}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_second_signal_ends_the_server_at_once() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--grace", "60"]);
    let _slow = server.begin_upload(&image(&folder, "1.png"), 10);
    server.get("/v2");
    server.kill("INT");
    server.wait_for("press Ctrl-C again");
    server.kill("INT");
    assert_eq!(server.wait().0, Some(130));
}

#[test]
fn the_server_listens_but_is_not_ready_while_it_warms_up() {
    let folder = folder();
    // Two hundred sizes take a while.
    let sizes: Vec<_> = (0..200).map(|number| format!("{}x1000", 100 + number)).collect();
    let server = Server::spawn(runtime(&folder, "serve"), &["--warm-up", &sizes.join(",")]);
    assert_eq!(server.get("/v2/health/live").status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 503);
    server.detect(&image(&folder, "1.png")).expect_error(503, "loading");
    server.wait_for("ready: model `model` version 1 on cpu");
    server.wait_until_ready();
    assert_eq!(server.detect(&image(&folder, "1.png")).status, 200);
    // Warming up is not counted.
    assert_eq!(server.metric(r#"nv_inference_exec_count{model="model",version="1"}"#), 1);
}

#[test]
fn a_signal_during_the_warm_up_ends_the_server() {
    let folder = folder();
    let sizes: Vec<_> = (0..200).map(|number| format!("{}x1000", 100 + number)).collect();
    let server = Server::spawn(runtime(&folder, "serve"), &["--warm-up", &sizes.join(",")]);
    server.kill("TERM");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn an_address_in_use_and_a_missing_model_are_errors() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let address = server.address.to_string();
    let (code, _, stderr) = run(runtime(&folder, "serve").args(["--listen", &address]));
    assert_eq!(code, 1);
    assert!(stderr.contains(&format!("cannot listen on `{address}`: ")) && stderr.contains("--listen"), "{stderr}");
    let mut command = fixture::program(&folder);
    let (code, _, stderr) = run(command.args(["serve", "--model", "none.onnx", "--listen", "127.0.0.1:0"]));
    assert!(code == 1 && stderr.contains("cannot read model `none.onnx`"), "{stderr}");
}
