//! `POST /detect`, the short form.

use std::thread;

use serde_json::{Value, json};

use crate::client::{Response, Server, expected, image};
use crate::fixture::{self, folder};

#[test]
fn concurrent_clients_get_the_results_of_detect_for_their_images() {
    let folder = folder();
    let expected = expected(&folder, &["1.png", "3.jpg"]);
    let server = Server::start(&folder, &["--workers", "3", "--max-batch", "4"]);
    let images = ["1.png", "3.jpg"].map(|name| image(&folder, name));
    thread::scope(|scope| {
        for client in 0..8 {
            let (server, images, expected) = (&server, &images, &expected);
            scope.spawn(move || {
                for request in client..client + 4 {
                    let response = server.detect(&images[request % 2]);
                    assert_eq!((response.status, &response.json()), (200, &expected[request % 2]));
                }
            });
        }
    });
    server.kill("TERM");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn a_form_gives_the_same_as_a_body() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let form = |fields: &str, name: &str| {
        let head =
            format!("{fields}--b\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"1.png\"\r\n\r\n");
        let body = [head.as_bytes(), &image, b"\r\n--b--\r\n"].concat();
        server.post("/detect", &["Content-Type: multipart/form-data; boundary=b"], &body)
    };
    let expected = server.detect(&image).json();
    assert_eq!(form("", "image").json(), expected);
    assert_eq!(form("", "file").json(), expected);
    let field = "--b\r\nContent-Disposition: form-data; name=\"max_detections\"\r\n\r\n2\r\n";
    assert_eq!(form(field, "image").json()["detections"].as_array().unwrap().len(), 2);
    let without_boundary = server.post("/detect", &["Content-Type: multipart/form-data"], &image);
    without_boundary.expect_error(400, "boundary");
    server.post("/detect", &["Content-Type: multipart/form-data; boundary=b"], &image).expect_error(400, "form");
}

#[test]
fn parameters_change_the_thresholds_of_their_request_only() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let found = |query: &str| -> Vec<Value> {
        let response = server.post(&format!("/detect{query}"), &[], &image);
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()["detections"].as_array().unwrap().clone()
    };
    let all = found("");
    assert!(all.len() > 4);
    assert_eq!(found("?max_detections=3"), all[..3]);
    let threshold = all.last().unwrap()["score"].as_f64().unwrap();
    let above = all.iter().filter(|found| found["score"].as_f64().unwrap() > threshold).count();
    assert!(above > 0);
    assert_eq!(found(&format!("?min_score={threshold}")), all[..above]);
    let lower = found("?min_score=0.55");
    assert!(lower.len() > all.len(), "{} and {}", lower.len(), all.len());
    let of_class = found("?classes=a%2Fb");
    let wanted: Vec<_> = all.iter().filter(|found| found["label"] == "a/b").cloned().collect();
    assert!(!wanted.is_empty() && of_class == wanted);
    assert_eq!(found(""), all);
    for (query, part) in [
        ("?score=0.1", "unknown parameter `score`"),
        ("?min_score=2", "from 0 to 1"),
        ("?classes=dog", "no class `dog`"),
        ("?priority=9", "1 (first) or 2"),
    ] {
        server.post(&format!("/detect{query}"), &[], &image).expect_error(400, part);
    }
    server.post("/detect?model=other", &[], &image).expect_error(404, "no model `other`");
}

#[test]
fn classes_of_the_server_are_narrowed_by_those_of_a_request() {
    let folder = folder();
    let server = Server::start(&folder, &["--classes", "a/b", "--max-detections", "3"]);
    let image = image(&folder, "1.png");
    let labels = |query: &str| -> Vec<Value> {
        let found = server.post(&format!("/detect{query}"), &[], &image).json();
        found["detections"].as_array().unwrap().iter().map(|found| found["label"].clone()).collect()
    };
    assert_eq!(labels(""), ["a/b", "a/b", "a/b"]);
    assert!(labels("?classes=cat").is_empty());
    let model = server.get("/model").json();
    assert_eq!((&model["provider"], &model["spec"]["classes"][1]["name"]), (&"cpu".into(), &"a/b".into()));
    assert_eq!(model["spec"]["postprocessing"]["max_detections"], 3);
    // Clients are not to learn where the server's files are.
    assert!(!model.to_string().contains(&fixture::MODEL.0.path().display().to_string()));
}

#[test]
fn the_annotated_image_is_sent_to_those_who_accept_only_images() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let sent = image(&folder, "1.png");
    let accept = |header: &str| server.post("/detect", &[header], &sent);
    let response = accept("Accept: image/jpeg");
    assert_eq!((response.status, response.headers["content-type"].as_str()), (200, "image/jpeg"));
    let drawn = image::load_from_memory(&response.body).unwrap().to_rgb8();
    let original = image::load_from_memory(&sent).unwrap().to_rgb8();
    assert_eq!(drawn.dimensions(), original.dimensions());
    let changed = drawn.pixels().zip(original.pixels()).filter(|(a, b)| a.0[0].abs_diff(b.0[0]) > 60).count();
    assert!(changed > 50, "{changed} pixels are drawn");
    for header in ["Accept: */*", "Accept: application/json, image/jpeg", "Accept: image/avif,image/webp,*/*;q=0.8"] {
        assert_eq!(accept(header).headers["content-type"], "application/json");
    }
    let error = server.post("/detect", &["Accept: image/jpeg"], b"no image");
    error.expect_error(400, "not a JPEG, PNG");
}

#[test]
fn bad_requests_get_an_error_and_do_not_affect_the_next() {
    let folder = folder();
    let server = Server::start(&folder, &["--max-pixels", "5000", "--max-bytes", "100000"]);
    let large = vec![0; 100_001];
    for (image, status, reason) in [
        (b"no image".to_vec(), 400, "not a JPEG, PNG"),
        (Vec::new(), 400, "the file is empty"),
        (image(&folder, "3.jpg")[..600].to_vec(), 400, "truncated"),
        (image(&folder, "1.png"), 413, "90x60 pixels exceed the limit of 5000 pixels"),
        (large.clone(), 413, "larger than the limit of 100000 bytes"),
    ] {
        server.detect(&image).expect_error(status, reason);
    }
    // Chunked requests do not declare their length.
    let chunks = [format!("{:x}\r\n", large.len()).as_bytes(), &large, b"\r\n0\r\n\r\n"].concat();
    let chunked = server.send("POST /detect", &["Transfer-Encoding: chunked"], &chunks);
    Response::read(chunked).expect_error(413, "larger than the limit");
    server.get("/detect").expect_error(405, "use POST");
    server.get("/else").expect_error(404, "POST /detect");
    assert_eq!(Response::read(server.send("nonsense", &[], b"")).status, 400);
    let response = server.detect(&image(&folder, "3.jpg"));
    assert_eq!((response.status, response.headers.contains_key("server-timing")), (200, true));
}

#[test]
fn a_slow_image_delays_no_others() {
    let folder = folder();
    image::RgbImage::new(7000, 7000).save(folder.path().join("slow.png")).unwrap();
    let server = Server::start_tiny(&folder, &["--workers", "2", "--max-bytes", "200000000"]);
    let (slow, fast) = (image(&folder, "slow.png"), image(&folder, "1.png"));
    // All are sent before the first response is read.
    let slow = server.begin_post("/detect", &[], &slow);
    let others: Vec<_> = (0..10).map(|_| server.begin_post("/detect", &[], &fast)).collect();
    for other in others {
        assert_eq!(Response::read(other).status, 200);
    }
    slow.set_nonblocking(true).unwrap();
    let pending = slow.peek(&mut [0]).unwrap_err();
    assert_eq!(pending.kind(), std::io::ErrorKind::WouldBlock, "the slow image was done before the others");
    slow.set_nonblocking(false).unwrap();
    assert_eq!(Response::read(slow).status, 200);
}

#[test]
fn every_request_has_an_id_and_a_line_in_the_log() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &[]);
    let response = server.post("/detect", &["X-Request-Id: abc-1"], &image(&folder, "1.png"));
    assert_eq!(response.headers["x-request-id"], "abc-1");
    let response = server.post("/detect", &["X-Request-Id: a b"], b"no image");
    assert!(response.headers["x-request-id"] != "a b" && response.status == 400);
    assert_eq!(response.json(), json!({"error": "not a JPEG, PNG, WebP, BMP, GIF or TIFF image"}));
    for status in ["status=200", "status=400"] {
        server.wait_for(status);
        let log = server.stderr();
        let line = log.lines().find(|line| line.contains(status) && line.contains("path=/detect")).unwrap();
        // Also of images that cannot be decoded.
        let stages = ["queue_ms=", "decode_ms=", "network_ms="];
        assert!(line.contains("bytes_in=") && stages.iter().all(|stage| line.contains(stage)), "{line}");
    }
}
