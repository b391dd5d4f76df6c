//! `runtime info` and `runtime bench`.

use serde_json::Value;

use crate::fixture::{folder, json, run, runtime};

#[test]
fn info_describes_a_file() {
    let folder = folder();
    let (code, text, stderr) = run(&mut runtime(&folder, "info"));
    assert_eq!(code, 0, "{stderr}");
    for part in [
        "SHA-256",
        "RetinaNet with ResNet-50",
        "any number of images",
        "shorter_side: 64",
        "retinanet.program: a test",
        "a/b",
    ] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    let (_, text, _) = run(runtime(&folder, "info").args(["--json", "-"]));
    let info = json(&text);
    assert_eq!(info["spec"]["classes"][1]["id"], 9);
    assert_eq!(info["outputs"][0]["shape"], serde_json::json!([null, null, 2]));
    assert_eq!((&info["batch"], &info["metadata"]["retinanet.program"]), (&Value::Null, &Value::from("a test")));
    // Convolutions: 3,407,472 in torchvision's ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=4) without `fc`, 741,632 in
    // the FPN, 89,590 in the heads. The norms are frozen.
    assert_eq!(info["parameters"], 4_238_694);
}

#[test]
fn bench_reports_every_stage_and_its_setup() {
    let folder = folder();
    let arguments = ["--runs", "2", "--warm-up", "0", "--batch-sizes", "1,2", "--json", "-", "1.png", "3.jpg"];
    let (code, stdout, stderr) = run(runtime(&folder, "bench").args(arguments));
    assert_eq!(code, 0, "{stderr}");
    let numbers = json(&stdout);
    assert_eq!(numbers["setup"]["model_sha256"].as_str().unwrap().len(), 64);
    assert_eq!((&numbers["setup"]["input"][0], &numbers["setup"]["input"][1]), (&64.into(), &96.into()));
    for stage in ["read", "preprocess", "network", "postprocess"] {
        let times = &numbers["stages"][stage];
        let [p50, p99] = ["p50", "p99"].map(|name| times[name].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= p99, "{stage}: {times}");
    }
    let speeds = numbers["throughput"].as_array().unwrap();
    assert_eq!(speeds.len(), 2);
    assert!(speeds.iter().all(|speed| speed["images_per_second"].as_f64().unwrap() > 0.0));
    assert!(numbers["start"]["total_ms"].as_f64() > numbers["start"]["session_ms"].as_f64());
    let (_, table, _) = run(runtime(&folder, "bench").args(["--runs", "1", "--size", "64x48"]));
    for part in ["first detection after", "postprocess", "images/s", "SHA-256"] {
        assert!(table.contains(part), "{table}");
    }
}
