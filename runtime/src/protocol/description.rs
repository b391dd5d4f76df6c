//! What the server says about itself and its models.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::INPUT;
use super::response::Output;

/// A model as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDescription {
    /// Name of the model.
    pub name: String,
    /// Version that serves.
    pub version: String,
    /// Maximum images per run of the network.
    pub max_batch: usize,
    /// How long an image waits for others to fill its batch.
    pub max_queue_delay: Duration,
    /// Maximum number of images that wait, and so of a request.
    pub max_queue: usize,
    /// Number of engines.
    pub instances: usize,
    /// Whether they run on a GPU.
    pub is_on_gpu: bool,
    /// Names of the classes, in the order of `detection_classes`.
    pub classes: Vec<String>,
}

/// The response to `GET /v2`. `model_control`: whether models can be loaded over HTTP.
pub fn server_description(version: &str, model_control: bool) -> Value {
    let mut extensions =
        vec!["binary_tensor_data", "model_configuration", "statistics", "schedule_policy", "parameters"];
    if model_control {
        extensions.push("model_repository");
    }
    json!({"name": "retinanet", "version": version, "extensions": extensions})
}

impl ModelDescription {
    /// The response to `GET /v2/models/M`.
    pub fn metadata(&self) -> Value {
        let output =
            |output: Output| json!({"name": output.name(), "datatype": output.datatype(), "shape": output.shape()});
        json!({
            "name": self.name,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1, 1]}],
            "outputs": Output::ALL.map(output),
        })
    }

    /// The response to `GET /v2/models/M/config`: Triton's model configuration.
    pub fn config(&self) -> Value {
        let output = |output: Output| {
            let data_type = format!("TYPE_{}", if output.datatype() == "BYTES" { "STRING" } else { output.datatype() });
            // A configuration leaves out the batch.
            let dims = if output == Output::Detections { &[1][..] } else { &output.shape()[1..] };
            json!({"name": output.name(), "data_type": data_type, "dims": dims})
        };
        json!({
            "name": self.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": self.max_queue,
            "input": [{"name": INPUT, "data_type": "TYPE_STRING", "dims": [1]}],
            "output": Output::ALL.map(output),
            "instance_group": [{
                "name": self.name,
                "count": self.instances,
                "kind": if self.is_on_gpu { "KIND_GPU" } else { "KIND_CPU" },
            }],
            "dynamic_batching": {
                "preferred_batch_size": [self.max_batch],
                "max_queue_delay_microseconds": self.max_queue_delay.as_micros() as u64,
                "priority_levels": 2,
                "default_priority_level": 2,
                "default_queue_policy": {"max_queue_size": self.max_queue, "allow_timeout_override": true},
            },
            "parameters": {"classes": {"string_value": json!(self.classes).to_string()}},
        })
    }
}

/// How often something took place, and how long it took in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DurationStatistics {
    /// How often.
    pub count: u64,
    /// Nanoseconds in all.
    pub ns: u64,
}

/// What a model has done since the server started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelStatistics {
    /// Milliseconds from 1970 to the last request; 0 if there was none.
    pub last_inference: u64,
    /// Images of successful requests.
    pub inference_count: u64,
    /// Runs of the network.
    pub execution_count: u64,
    /// Successful requests.
    pub success: DurationStatistics,
    /// Failed requests.
    pub fail: DurationStatistics,
    /// Waiting of successful requests: for a worker, an engine, and others to fill the batch.
    pub queue: DurationStatistics,
    /// Decoding and preparing their images.
    pub compute_input: DurationStatistics,
    /// Running the network on them.
    pub compute_infer: DurationStatistics,
    /// Post-processing and encoding their results.
    pub compute_output: DurationStatistics,
    /// Runs of the network by the number of images in the batch.
    pub batches: Vec<(usize, DurationStatistics)>,
}

impl ModelStatistics {
    /// The object of a model in the response to `GET /v2/models/M/stats`.
    pub fn to_json(&self, name: &str, version: &str) -> Value {
        let batch = |(size, infer): &(usize, DurationStatistics)| json!({"batch_size": size, "compute_infer": infer});
        // Clients of Triton such as perf_analyzer expect these; there is no cache of responses.
        let no_cache = DurationStatistics::default();
        json!({
            "name": name,
            "version": version,
            "last_inference": self.last_inference,
            "inference_count": self.inference_count,
            "execution_count": self.execution_count,
            "inference_stats": {
                "success": self.success,
                "fail": self.fail,
                "queue": self.queue,
                "compute_input": self.compute_input,
                "compute_infer": self.compute_infer,
                "compute_output": self.compute_output,
                "cache_hit": no_cache,
                "cache_miss": no_cache,
            },
            "batch_stats": self.batches.iter().map(batch).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_and_metadata_name_the_same_tensors() {
        let description = ModelDescription {
            name: "m".to_owned(),
            version: "2".to_owned(),
            max_batch: 8,
            max_queue_delay: Duration::from_millis(1),
            max_queue: 64,
            instances: 1,
            is_on_gpu: false,
            classes: vec!["cat".to_owned()],
        };
        let (metadata, config) = (description.metadata(), description.config());
        assert_eq!(metadata["versions"], json!(["2"]));
        let names =
            |value: &Value| value.as_array().unwrap().iter().map(|item| item["name"].clone()).collect::<Vec<_>>();
        assert_eq!(names(&metadata["outputs"]), names(&config["output"]));
        assert_eq!((&config["max_batch_size"], &config["input"][0]["data_type"]), (&json!(64), &json!("TYPE_STRING")));
        assert_eq!(config["output"][1]["dims"], json!([-1, 4]));
        assert_eq!(config["dynamic_batching"]["max_queue_delay_microseconds"], 1000);
        assert_eq!(config["parameters"]["classes"]["string_value"], "[\"cat\"]");
    }
}
