//! Metrics and statistics: they add up to what was sent.

use std::thread;

use serde_json::json;

use crate::client::{Server, image, until};
use crate::fixture::folder;

#[test]
fn metrics_and_statistics_add_up_to_what_was_sent() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--max-batch", "4", "--max-queue-delay", "20000"]);
    let (image, path) = (image(&folder, "1.png"), "/v2/models/tiny/infer");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                assert_eq!(server.detect(&image).status, 200);
                assert_eq!(server.infer(path, &[&image, b"no image", &image], json!({})).status, 200);
                assert_eq!(server.infer(path, &[b""], json!({})).status, 400);
                assert_eq!(server.detect(b"no image").status, 400);
            });
        }
    });
    assert_eq!(server.post(path, &[], b"no JSON").status, 400);
    assert_eq!(server.post("/detect?score=1", &[], &image).status, 400);
    // A client that leaves in the middle of its body.
    drop(server.begin_upload(&image, 10));
    let labels = r#"model="tiny",version="1""#;
    let failures = |reason: &str| {
        server.metric(&format!(r#"nv_inference_request_failure{{model="tiny",reason="{reason}",version="1"}}"#))
    };
    until(|| failures("CANCELED") + failures("OTHER") == 8 + 8 + 2 + 1);
    let metric = |name: &str| server.metric(&format!("{name}{{{labels}}}"));
    let (success, images, runs) =
        (metric("nv_inference_request_success"), metric("nv_inference_count"), metric("nv_inference_exec_count"));
    assert_eq!((success, images), (16, 8 + 16));
    assert!((6..24).contains(&runs), "{runs} runs of the network for 24 images");
    assert_eq!((failures("REJECTED"), failures("BACKEND")), (0, 0));
    assert_eq!(metric("nv_inference_pending_request_count"), 0);
    assert_eq!((metric("detector_batch_size_count"), metric("detector_batch_size_sum")), (runs, 24));
    assert_eq!(metric("detector_decode_duration_seconds_count"), 24);
    let refused = |reason: &str| {
        server.metric(&format!(r#"detector_images_refused_total{{model="tiny",reason="{reason}",version="1"}}"#))
    };
    assert_eq!((refused("unknown_format"), refused("empty")), (16, 8));
    for stage in ["request", "queue", "compute_input", "compute_infer", "compute_output"] {
        assert!(metric(&format!("nv_inference_{stage}_duration_us")) > 0, "{stage}");
    }

    let statistics = server.get("/v2/models/tiny/stats").json();
    let model = &statistics["model_stats"][0];
    assert_eq!((&model["name"], &model["version"]), (&json!("tiny"), &json!("1")));
    assert_eq!((&model["inference_count"], &model["execution_count"]), (&json!(images), &json!(runs)));
    assert_eq!(model["inference_stats"]["success"]["count"], success);
    assert_eq!(model["inference_stats"]["fail"]["count"], 19);
    let batches = model["batch_stats"].as_array().unwrap();
    let sum: u64 = batches
        .iter()
        .map(|batch| batch["batch_size"].as_u64().unwrap() * batch["compute_infer"]["count"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, 24);
    assert!(model["last_inference"].as_u64().unwrap() > 1_700_000_000_000);
    assert_eq!(server.get("/v2/models/stats").json(), statistics);
}
