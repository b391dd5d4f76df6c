//! `POST /v2/models/M/infer` and what describes models: the Open Inference Protocol.

use std::io::Write;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

use crate::client::{Server, expected, image, tensor};
use crate::fixture::folder;

const PATH: &str = "/v2/models/model/infer";

/// The output of this name.
fn output<'a>(response: &'a Value, name: &str) -> &'a Value {
    let outputs = response["outputs"].as_array().unwrap();
    outputs.iter().find(|output| output["name"] == name).unwrap()
}

#[test]
fn images_of_several_sizes_and_a_broken_one_share_a_request() {
    let folder = folder();
    let expected = expected(&folder, &["1.png", "3.jpg"]);
    let server = Server::start(&folder, &["--max-batch", "2"]);
    let images = ["1.png", "2.png", "3.jpg"].map(|name| image(&folder, name));
    let response = server.infer(PATH, &images.each_ref().map(Vec::as_slice), json!({}));
    assert_eq!(response.status, 200, "{}", response.text());
    let response = response.json();
    assert_eq!(
        (&response["model_name"], &response["model_version"], &response["id"]),
        (&json!("model"), &json!("1"), &json!("7"))
    );
    let texts = output(&response, "detections")["data"].as_array().unwrap();
    let of_image: Vec<Value> = texts.iter().map(|text| serde_json::from_str(text.as_str().unwrap()).unwrap()).collect();
    assert_eq!((&of_image[0], &of_image[2]), (&expected[0], &expected[1]));
    assert!(of_image[1]["error"].as_str().unwrap().contains("not a JPEG"), "{}", of_image[1]);
    let counts = [0, 2].map(|image: usize| of_image[image]["detections"].as_array().unwrap().len());
    let max = counts[0].max(counts[1]);
    assert_eq!(output(&response, "num_detections")["data"], json!([counts[0], 0, counts[1]]));
    assert_eq!(output(&response, "num_detections")["shape"], json!([3, 1]));
    assert_eq!(output(&response, "detection_boxes")["shape"], json!([3, max, 4]));
    let first = &of_image[2]["detections"][0];
    let row = 2 * max;
    assert_eq!(output(&response, "detection_scores")["data"][row], first["score"]);
    assert_eq!(output(&response, "detection_boxes")["data"][4 * row], first["box"][0]);
    let class = usize::from(first["label"] == "a/b");
    assert_eq!(output(&response, "detection_classes")["data"][row], json!(class));
    // What has no detections is padded.
    assert_eq!(output(&response, "detection_scores")["data"][max], json!(0.0));
    assert_eq!(output(&response, "detection_classes")["data"][max], json!(-1));
}

#[test]
fn json_binary_raw_and_compressed_requests_give_the_same() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let binary = server.infer(PATH, &[&image], json!({}));
    assert_eq!(binary.status, 200, "{}", binary.text());
    let expected = binary.json()["outputs"].clone();
    let input = json!([{
        "name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"},
        "data": [BASE64_STANDARD.encode(&image)],
    }]);
    let body = json!({ "inputs": input }).to_string();
    assert_eq!(server.post(PATH, &[], body.as_bytes()).json()["outputs"], expected);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(body.as_bytes()).unwrap();
    let mut deflate = ZlibEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(body.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    assert_eq!(server.post(PATH, &["Content-Encoding: gzip"], &gzip).json()["outputs"], expected);
    let deflate = deflate.finish().unwrap();
    assert_eq!(server.post(PATH, &["Content-Encoding: deflate"], &deflate).json()["outputs"], expected);
    server.post(PATH, &["Content-Encoding: br"], &gzip).expect_error(415, "`br`");
    server.post(PATH, &["Content-Encoding: gzip"], &gzip[..20]).expect_error(400, "decompressed");

    let raw = server.post(PATH, &["Inference-Header-Content-Length: 0"], &image);
    let length: usize = raw.headers["inference-header-content-length"].parse().unwrap();
    let (header, data) = raw.body.split_at(length);
    let header: Value = serde_json::from_slice(header).unwrap();
    let size = |name: &str| output(&header, name)["parameters"]["binary_data_size"].as_u64().unwrap() as usize;
    let total = ["num_detections", "detection_boxes", "detection_scores", "detection_classes", "detections"].map(size);
    assert_eq!(data.len(), total.iter().sum::<usize>());
    assert_eq!(json!([i32::from_le_bytes(*data.first_chunk().unwrap())]), expected[0]["data"]);
}

#[test]
fn requested_outputs_and_parameters_are_followed() {
    let folder = folder();
    let server = Server::start(&folder, &[]);
    let image = image(&folder, "1.png");
    let with = |outputs: Value, parameters: Value| {
        let data = tensor(&[&image]);
        let parameters_of_input = json!({"binary_data_size": data.len()});
        let input = json!([{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters_of_input}]);
        let header = json!({"inputs": input, "outputs": outputs, "parameters": parameters}).to_string();
        let length = format!("Inference-Header-Content-Length: {}", header.len());
        server.post(PATH, &[&length], &[header.as_bytes(), &data].concat())
    };
    let response = with(json!([{"name": "num_detections"}]), json!({"max_detections": 2, "priority": 1})).json();
    assert_eq!((response["outputs"].as_array().unwrap().len(), &response["outputs"][0]["data"]), (1, &json!([2])));
    assert_eq!(response.get("id"), None);
    let binary =
        with(json!([{"name": "num_detections", "parameters": {"binary_data": true}}]), json!({"min_score": 1}));
    assert_eq!(binary.headers["content-type"], "application/octet-stream");
    assert_eq!(binary.body[binary.body.len() - 4..], 0i32.to_le_bytes());
    with(json!([{"name": "boxes"}]), json!({})).expect_error(400, "no output `boxes`");
    with(json!([]), json!({"min_scor": 0.1})).expect_error(400, "min_scor");
    with(json!([]), json!({"classes": "dog"})).expect_error(400, "no class `dog`");
}

#[test]
fn wrong_requests_get_400_and_unknown_models_404() {
    let folder = folder();
    let server = Server::start_tiny(&folder, &["--max-queue", "4"]);
    let path = "/v2/models/tiny/infer";
    let image = image(&folder, "1.png");
    let post = |header: &str, data: &[u8]| {
        let length = format!("Inference-Header-Content-Length: {}", header.len());
        server.post(path, &[&length], &[header.as_bytes(), data].concat())
    };
    let header = |name: &str, shape: &str, datatype: &str, size: usize| {
        format!(
            r#"{{"inputs":[{{"name":"{name}","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    let data = tensor(&[&image]);
    post("{\"inputs\": [", b"").expect_error(400, "JSON is invalid");
    post(&header("images", "[1]", "BYTES", data.len()), &data).expect_error(400, "no input `images`");
    post(&header("image", "[1]", "UINT8", data.len()), &data).expect_error(400, "expected BYTES");
    post(&header("image", "[1,3]", "BYTES", data.len()), &data).expect_error(400, "[1, 3]");
    post(&header("image", "[2]", "BYTES", data.len()), &data).expect_error(400, "declares 2");
    post(&header("image", "[5]", "BYTES", data.len()), &data).expect_error(400, "at most 4");
    post(&header("image", "[1]", "BYTES", 1 << 40), &data).expect_error(400, "declares 1099511627776 bytes");
    let beyond = [&u32::MAX.to_le_bytes()[..], &image].concat();
    post(&header("image", "[1]", "BYTES", beyond.len()), &beyond).expect_error(400, "longer than the rest");
    let length = format!("Inference-Header-Content-Length: {}", data.len() + 1);
    server.post(path, &[&length], &data).expect_error(400, "not a length within the body");
    // A broken image that is alone.
    server.infer(path, &[b"no image"], json!({})).expect_error(400, "not a JPEG");
    server.infer("/v2/models/other/infer", &[&image], json!({})).expect_error(404, "no model `other`");
    server.infer("/v2/models/tiny/versions/2/infer", &[&image], json!({})).expect_error(404, "no version `2`");
    server.get(path).expect_error(405, "use POST");
    assert_eq!(server.infer("/v2/models/tiny/versions/1/infer", &[&image], json!({})).status, 200);
}

#[test]
fn the_server_and_its_models_are_described() {
    let folder = folder();
    let server = Server::start(&folder, &["--max-batch", "2", "--max-queue-delay", "500", "--max-queue", "9"]);
    let description = server.get("/v2").json();
    assert_eq!(description["name"], "retinanet");
    assert!(description["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/model/ready", "/v2/models/model/versions/1/ready"] {
        let response = server.get(path);
        assert_eq!((response.status, response.body.len()), (200, 0), "{path}");
    }
    assert_eq!(server.get("/v2/models/model/versions/2/ready").status, 404);
    assert_eq!(server.get("/v2/models/other/ready").status, 404);
    let metadata = server.get("/v2/models/model").json();
    assert_eq!(metadata, server.get("/v2/models/model/versions/1").json());
    assert_eq!(metadata["inputs"], json!([{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}]));
    assert_eq!(metadata["outputs"][1], json!({"name": "detection_boxes", "datatype": "FP32", "shape": [-1, -1, 4]}));
    let config = server.get("/v2/models/model/config").json();
    assert_eq!((&config["max_batch_size"], &config["name"]), (&json!(9), &json!("model")));
    assert_eq!(config["dynamic_batching"]["max_queue_delay_microseconds"], 500);
    assert_eq!(config["parameters"]["classes"]["string_value"], r#"["cat","a/b"]"#);
}
