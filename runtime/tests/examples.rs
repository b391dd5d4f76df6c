//! The examples of the library's documentation run.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

#[path = "cli/fixture.rs"]
mod fixture;
#[path = "../examples/folder.rs"]
mod for_a_folder;
#[path = "../examples/image.rs"]
mod for_an_image;
#[path = "../examples/raw_outputs.rs"]
mod from_raw_outputs;
#[path = "../examples/service.rs"]
mod service;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use fixture::{MODEL, folder};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

#[test]
fn examples_find_the_same_objects() {
    let folder = folder();
    let image = folder.path().join("1.png");
    let detections = from_raw_outputs::detect(&MODEL.1, &image).unwrap();
    let lines = for_an_image::detect(&MODEL.1, &image).unwrap();
    assert!(!detections.is_empty());
    // The model's own threshold is higher than that of the example.
    assert!(lines.lines().count() > detections.len(), "{lines}");

    let lines = for_a_folder::detect(&MODEL.1, folder.path()).unwrap();
    assert!(lines.len() == 4 && lines[0].ends_with(&format!("1.png: {} objects", detections.len())), "{lines:?}");
    assert!(lines[1].contains("2.png: not a JPEG"), "{lines:?}");
}

#[test]
fn the_service_answers_all_requests_with_one_detector() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the process.
    thread::spawn(move || runtime.block_on(service::serve(&MODEL.1, listener)).map_err(|error| error.to_string()));
    let post = |body: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        let head =
            format!("POST /count HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    let folder = folder();
    let path = folder.path().join("1.png");
    let count = from_raw_outputs::detect(&MODEL.1, &path).unwrap().len();
    let image = std::fs::read(path).unwrap();
    let responses = thread::scope(|scope| {
        let requests = [(); 4].map(|()| scope.spawn(|| post(&image)));
        requests.map(|request| request.join().unwrap())
    });
    for response in responses {
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with(&format!("\r\n\r\n{count}")), "{response}");
    }
    assert!(post(b"no image").starts_with("HTTP/1.1 400"));
}
