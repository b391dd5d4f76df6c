//! Several models, their versions, and replacing them while requests arrive.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::{Response, Server, image, until};
use crate::fixture::{self, folder, run};

const TOKEN: &str = "Authorization: Bearer secret";

/// Puts a model where the server looks for a version.
fn put(folder: &TempDir, name: &str, version: u64, model: &[u8]) {
    let path = folder.path().join(format!("models/{name}/{version}"));
    fs::create_dir_all(&path).unwrap();
    // As a careful operator does it, so that the server never finds a half.
    fs::write(path.join("part"), model).unwrap();
    fs::rename(path.join("part"), path.join("model.onnx")).unwrap();
}

fn start(folder: &TempDir, arguments: &[&str]) -> Server {
    let mut command = fixture::program(folder);
    command.args(["serve", "--models", "models"]);
    Server::start_with(command, arguments)
}

fn versions(server: &Server, name: &str) -> Value {
    server.get(&format!("/v2/models/{name}")).json()["versions"].clone()
}

#[test]
fn every_model_is_served_in_its_highest_version() {
    let folder = folder();
    let tiny = fixture::tiny_model();
    put(&folder, "a", 1, tiny);
    put(&folder, "a", 10, tiny);
    put(&folder, "a", 9, tiny);
    put(&folder, "b", 3, &fs::read(&fixture::MODEL.1).unwrap());
    let server = start(&folder, &[]);
    assert_eq!((versions(&server, "a"), versions(&server, "b")), (json!(["10"]), json!(["3"])));
    let image = image(&folder, "1.png");
    server.detect(&image).expect_error(400, "choose one of a, b with ?model=");
    assert_eq!(server.post("/detect?model=b", &[], &image).status, 200);
    let response = server.infer("/v2/models/a/versions/10/infer", &[&image], json!({}));
    assert_eq!((response.status, &response.json()["model_version"]), (200, &json!("10")));
    server.infer("/v2/models/a/versions/9/infer", &[&image], json!({})).expect_error(404, "no version `9`");
    server.infer("/v2/models/c/infer", &[&image], json!({})).expect_error(404, "there are `a`, `b`");
}

#[test]
fn a_new_version_replaces_the_old_one_without_a_lost_request() {
    let folder = folder();
    let tiny = fixture::tiny_model();
    put(&folder, "a", 1, tiny);
    let server = start(&folder, &[]);
    let (image, stop) = (image(&folder, "1.png"), AtomicBool::new(false));
    let (server, image) = (&server, &image[..]);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !stop.load(SeqCst) {
                        let response = server.infer("/v2/models/a/infer", &[image], json!({}));
                        assert_eq!(response.status, 200, "{}", response.text());
                        seen.push(response.json()["model_version"].as_str().unwrap().to_owned());
                    }
                    seen
                })
            })
            .collect();
        for version in 2..=4 {
            put(&folder, "a", version, tiny);
            server.kill("HUP");
            until(|| versions(server, "a") == json!([version.to_string()]));
        }
        thread::sleep(std::time::Duration::from_millis(200));
        stop.store(true, SeqCst);
        for client in clients {
            let seen = client.join().unwrap();
            assert!(seen.is_sorted() && seen.last().unwrap() == "4", "{seen:?}");
        }
    });
    // The metrics of a version end with it.
    until(|| (1..=3).all(|version| !server.get("/metrics").text().contains(&format!("version=\"{version}\""))));
    assert!(server.metric(r#"nv_inference_request_success{model="a",version="4"}"#) > 0);
}

#[test]
fn a_broken_version_changes_nothing_and_is_tried_again_when_its_file_changes() {
    let folder = folder();
    let tiny = fixture::tiny_model();
    put(&folder, "a", 1, tiny);
    let server = start(&folder, &["--poll-models", "1"]);
    put(&folder, "a", 2, b"not a model");
    server.wait_for("version 1 serves on");
    assert_eq!(versions(&server, "a"), json!(["1"]));
    assert_eq!(server.get("/v2/models/a/versions/2/ready").status, 503);
    assert_eq!(server.get("/v2/models/a/versions/1/ready").status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 200);
    let image = image(&folder, "1.png");
    server.infer("/v2/models/a/versions/2/infer", &[&image], json!({})).expect_error(503, "version 2 cannot be opened");
    assert_eq!(server.infer("/v2/models/a/infer", &[&image], json!({})).json()["model_version"], "1");
    thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(server.stderr().matches("cannot be opened").count(), 1, "{}", server.stderr());
    put(&folder, "a", 2, tiny);
    until(|| versions(&server, "a") == json!(["2"]));
    assert_eq!(server.get("/v2/models/a/versions/2/ready").status, 200);
    server.infer("/v2/models/a/versions/1/infer", &[&image], json!({})).expect_error(404, "no version `1`");
}

#[test]
fn at_the_start_a_broken_version_yields_to_a_lower_one() {
    let folder = folder();
    put(&folder, "a", 1, fixture::tiny_model());
    put(&folder, "a", 2, b"not a model");
    let server = start(&folder, &[]);
    assert_eq!(versions(&server, "a"), json!(["1"]));
    assert!(server.stderr().contains("model `a` version 2 cannot be opened"), "{}", server.stderr());
}

#[test]
fn models_whose_files_vanish_are_served_on() {
    let folder = folder();
    put(&folder, "a", 1, fixture::tiny_model());
    put(&folder, "b", 1, fixture::tiny_model());
    let server = start(&folder, &[]);
    fs::remove_dir_all(folder.path().join("models/a")).unwrap();
    server.kill("HUP");
    server.wait_for("looking for new versions");
    let image = image(&folder, "1.png");
    assert_eq!(server.post("/detect?model=a", &[], &image).status, 200);
    fs::remove_dir_all(folder.path().join("models")).unwrap();
    server.kill("HUP");
    server.wait_for("cannot read the folder of models");
    assert_eq!(server.post("/detect?model=b", &[], &image).status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 200);
}

#[test]
fn a_broken_new_model_changes_nothing_for_the_others() {
    let folder = folder();
    put(&folder, "a", 1, fixture::tiny_model());
    let server = start(&folder, &["--token", "secret", "--model-control"]);
    let post = |path: &str, body: &[u8]| server.post(path, &[TOKEN], body);
    let status = |path: &str| Response::read(server.send(&format!("GET {path}"), &[TOKEN], b"")).status;
    put(&folder, "b", 1, b"not a model");
    server.kill("HUP");
    server.wait_for("model `b` version 1 cannot be opened");
    let image = image(&folder, "1.png");
    let serves = || {
        assert_eq!(status("/v2/health/ready"), 200);
        // `a` is still the only one that can be meant.
        assert_eq!(post("/detect", &image).status, 200);
    };
    serves();
    assert_eq!(status("/v2/models/b/ready"), 503);
    post("/detect?model=b", &image).expect_error(503, "cannot be opened");
    // Wrong parameters are named, whatever the models.
    post("/detect?model=b&score=1", &image).expect_error(400, "score");
    post("/v2/models/a/infer?min_score=0.5", b"{}").expect_error(400, "in its JSON");
    assert_eq!(post("/v2/repository/models/a/load", b"{}").status, 200);
    serves();
    fs::remove_dir_all(folder.path().join("models/b")).unwrap();
    assert_eq!(post("/v2/repository/models/a/load", b"{}").status, 200);
    serves();
    assert_eq!(status("/v2/models/b/ready"), 404);
}

#[test]
fn models_are_loaded_and_unloaded_over_http_with_the_token() {
    let folder = folder();
    let tiny = fixture::tiny_model();
    put(&folder, "a", 1, tiny);
    let server = start(&folder, &["--token", "secret", "--model-control"]);
    let post = |path: &str| server.post(path, &[TOKEN], b"{}");
    let get = |path: &str| Response::read(server.send(&format!("GET {path}"), &[TOKEN], b""));
    server.post("/v2/repository/index", &[], b"").expect_error(401, "token");
    assert!(get("/v2").json()["extensions"].as_array().unwrap().contains(&json!("model_repository")));
    let index = post("/v2/repository/index").json();
    assert_eq!(index, json!([{"name": "a", "version": "1", "state": "READY", "reason": ""}]));
    put(&folder, "a", 2, tiny);
    assert_eq!(post("/v2/repository/models/a/load").status, 200);
    assert_eq!(get("/v2/models/a").json()["versions"], json!(["2"]));
    put(&folder, "a", 3, b"not a model");
    post("/v2/repository/models/a/load").expect_error(500, "version 2 serves on");
    let states = post("/v2/repository/index").json();
    assert_eq!((&states[0]["state"], &states[1]["state"]), (&json!("READY"), &json!("UNAVAILABLE")));
    let ready = server.post("/v2/repository/index", &[TOKEN], br#"{"ready": true}"#).json();
    assert_eq!(ready.as_array().unwrap().len(), 1);
    post("/v2/repository/models/b/load").expect_error(404, "no model `b`");
    put(&folder, "b", 1, tiny);
    put(&folder, "c", 1, tiny);
    put(&folder, "c", 2, b"not a model");
    assert_eq!(post("/v2/repository/models/b/load").status, 200);
    // What was not asked for is not known; of what is, the highest version that works serves.
    assert_eq!(get("/v2/models/c/ready").status, 404);
    assert_eq!(post("/v2/repository/models/c/load").status, 200);
    assert_eq!(get("/v2/models/c").json()["versions"], json!(["1"]));
    post("/v2/repository/models/c/load").expect_error(500, "version 1 serves on");
    fs::remove_dir_all(folder.path().join("models/c")).unwrap();
    assert_eq!(post("/v2/repository/models/c/unload").status, 200);
    assert_eq!(post("/v2/repository/models/a/unload").status, 200);
    server.post("/detect?model=a", &[TOKEN], &image(&folder, "1.png")).expect_error(503, "unloaded");
    assert_eq!(get("/v2/health/ready").status, 200);
    // It stays unloaded until it is loaded again.
    server.kill("HUP");
    server.wait_for("looking for new versions");
    assert_eq!(get("/v2/models/a/ready").status, 503);
    fs::remove_dir_all(folder.path().join("models/a/3")).unwrap();
    assert_eq!(post("/v2/repository/models/a/load").status, 200);
    assert_eq!(get("/v2/models/a/ready").status, 200);
}

#[test]
fn loading_over_http_must_be_allowed() {
    let folder = folder();
    put(&folder, "a", 1, fixture::tiny_model());
    let server = start(&folder, &[]);
    server.post("/v2/repository/models/a/load", &[], b"").expect_error(403, "--model-control");
    let mut command = fixture::program(&folder);
    let (code, _, stderr) = run(command.args(["serve", "--models", "models", "--model-control"]));
    assert!(code == 2 && stderr.contains("--token"), "{stderr}");
}

#[test]
fn a_folder_without_a_model_that_works_is_an_error() {
    let folder = folder();
    let serve = || {
        let mut command = fixture::program(&folder);
        run(command.args(["serve", "--models", "models", "--listen", "127.0.0.1:0"]))
    };
    let (code, _, stderr) = serve();
    assert!(code == 1 && stderr.contains("cannot read the folder of models `models`"), "{stderr}");
    fs::create_dir(folder.path().join("models")).unwrap();
    let (code, _, stderr) = serve();
    assert!(code == 1 && stderr.contains("NAME/VERSION/model.onnx"), "{stderr}");
    put(&folder, "a", 1, b"not a model");
    let (code, _, stderr) = serve();
    assert!(code == 1 && stderr.contains("model `a` version 1 cannot be opened"), "{stderr}");
}

#[test]
fn a_flag_wins_over_the_variable_of_the_other_kind_of_models() {
    let folder = folder();
    fs::write(folder.path().join("tiny.onnx"), fixture::tiny_model()).unwrap();
    let mut command = fixture::program(&folder);
    command.env("DETECTOR_MODELS", "nowhere").args(["serve", "--model=tiny.onnx"]);
    assert_eq!(Server::start_with(command, &[]).get("/v2/models/tiny/ready").status, 200);
    put(&folder, "a", 1, fixture::tiny_model());
    let mut command = fixture::program(&folder);
    command.env("DETECTOR_MODEL", "nowhere.onnx").env("DETECTOR_MODEL_NAME", "b").args(["serve", "--models", "models"]);
    assert_eq!(Server::start_with(command, &[]).get("/v2/models/a/ready").status, 200);
}

#[test]
fn the_name_of_a_single_model_can_be_chosen() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--model-name", "cats"]);
    assert_eq!(server.get("/v2/models/cats/ready").status, 200);
    let _ = fs::remove_file(folder.path().join("tiny.onnx"));
    // A model whose file has vanished is served on.
    assert_eq!(server.detect(&image(&folder, "1.png")).status, 200);
}
