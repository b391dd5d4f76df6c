//! The body of the response to `POST /v2/models/M/infer`.

use serde::Serialize;

use super::error::RequestError;
use crate::Detection;

/// An output of the model as the protocol has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// INT32 `[N, 1]`: number of detections of each image.
    NumDetections,
    /// FP32 `[N, M, 4]`: boxes as `x1, y1, x2, y2` in pixels of the upright original images, zero beyond an image's number of
    /// detections.
    Boxes,
    /// FP32 `[N, M]`: scores, highest first, zero beyond.
    Scores,
    /// INT32 `[N, M]`: indices into the model's classes, -1 beyond.
    Classes,
    /// BYTES `[N]`: a JSON object for each image, as `runtime detect --json` writes it, with `error` if it is broken.
    Detections,
}

/// An output that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedOutput {
    /// The output.
    pub output: Output,
    /// Whether its data follow the JSON instead of being in it.
    pub is_binary: bool,
}

/// What was found in an image.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageResult {
    /// The detections; empty for a broken image.
    pub detections: Vec<Detection>,
    /// The JSON object of the image.
    pub json: String,
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InferResponse {
    /// Length of the JSON before the binary data; `None` if all of the body is JSON.
    pub header_length: Option<usize>,
    /// JSON and binary data.
    pub body: Vec<u8>,
}

impl Output {
    /// All outputs.
    pub const ALL: [Self; 5] = [Self::NumDetections, Self::Boxes, Self::Scores, Self::Classes, Self::Detections];

    /// The name in requests and responses: the first four are those of TensorRT's EfficientNMS.
    pub fn name(self) -> &'static str {
        match self {
            Self::NumDetections => "num_detections",
            Self::Boxes => "detection_boxes",
            Self::Scores => "detection_scores",
            Self::Classes => "detection_classes",
            Self::Detections => "detections",
        }
    }

    /// The output of this name.
    pub(super) fn named(name: &str) -> Result<Self, RequestError> {
        Self::ALL.into_iter().find(|output| output.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            RequestError::bad(format!("there is no output `{name}`; there are {names}"))
        })
    }

    /// The type in the protocol.
    pub fn datatype(self) -> &'static str {
        match self {
            Self::NumDetections | Self::Classes => "INT32",
            Self::Boxes | Self::Scores => "FP32",
            Self::Detections => "BYTES",
        }
    }

    /// The shape; -1 for what the images decide.
    pub fn shape(self) -> &'static [i64] {
        match self {
            Self::NumDetections => &[-1, 1],
            Self::Boxes => &[-1, -1, 4],
            Self::Scores | Self::Classes => &[-1, -1],
            Self::Detections => &[-1],
        }
    }
}

#[derive(Serialize)]
struct Header<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<Tensor>,
}

#[derive(Serialize)]
struct Tensor {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<TensorParameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
}

#[derive(Serialize)]
struct TensorParameters {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data {
    Integers(Vec<i32>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

impl Data {
    /// The data as a binary tensor.
    fn append_to(&self, binary: &mut Vec<u8>) {
        match self {
            Self::Integers(values) => binary.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Floats(values) => binary.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Texts(texts) => {
                for text in texts {
                    binary.extend((text.len() as u32).to_le_bytes());
                    binary.extend(text.as_bytes());
                }
            }
        }
    }
}

impl InferResponse {
    /// The response with the results of a request's images.
    pub fn new(
        [model, version]: [&str; 2],
        id: Option<&str>,
        outputs: &[RequestedOutput],
        results: &[ImageResult],
    ) -> Self {
        let mut binary = Vec::new();
        let tensors = outputs.iter().map(|RequestedOutput { output, is_binary }| {
            let (shape, data) = tensor(*output, results);
            let start = binary.len();
            if *is_binary {
                data.append_to(&mut binary);
            }
            let parameters = is_binary.then(|| TensorParameters { binary_data_size: binary.len() - start });
            let data = (!is_binary).then_some(data);
            Tensor { name: output.name(), datatype: output.datatype(), shape, parameters, data }
        });
        let header = Header { model_name: model, model_version: version, id, outputs: tensors.collect() };
        let mut body = serde_json::to_vec(&header).expect("names and numbers are JSON");
        let is_binary = outputs.iter().any(|output| output.is_binary);
        let header_length = is_binary.then_some(body.len());
        body.append(&mut binary);
        Self { header_length, body }
    }
}

/// Shape and data of an output.
fn tensor(output: Output, results: &[ImageResult]) -> (Vec<usize>, Data) {
    let images = results.len();
    let max = results.iter().map(|result| result.detections.len()).max().unwrap_or(0);
    match output {
        Output::NumDetections => {
            let counts = results.iter().map(|result| result.detections.len() as i32);
            (vec![images, 1], Data::Integers(counts.collect()))
        }
        Output::Boxes => {
            let boxes = padded(results, max, [0.0; 4], |detection| detection.bounding_box.into());
            (vec![images, max, 4], Data::Floats(boxes))
        }
        Output::Scores => (vec![images, max], Data::Floats(padded(results, max, [0.0], |detection| [detection.score]))),
        Output::Classes => {
            let classes = padded(results, max, [-1], |detection| [detection.class_index as i32]);
            (vec![images, max], Data::Integers(classes))
        }
        Output::Detections => (vec![images], Data::Texts(results.iter().map(|result| result.json.clone()).collect())),
    }
}

/// For each image `max` items, with `padding` where there are fewer detections.
fn padded<T: Clone, const LEN: usize>(
    results: &[ImageResult],
    max: usize,
    padding: [T; LEN],
    item: impl Fn(&Detection) -> [T; LEN],
) -> Vec<T> {
    let rows = results.iter().flat_map(|result| {
        let items = result.detections.iter().map(&item);
        items.chain(std::iter::repeat(padding.clone())).take(max)
    });
    rows.flatten().collect()
}

#[cfg(test)]
mod tests {
    use models::BoundingBox;
    use serde_json::{Value, json};

    use super::*;

    fn results() -> Vec<ImageResult> {
        let detection =
            |class_index, score| Detection { class_index, score, bounding_box: BoundingBox::new(1.0, 2.5, 3.0, 4.0) };
        vec![
            ImageResult { detections: vec![detection(1, 0.9), detection(0, 0.5)], json: "{\"width\":1}".to_owned() },
            ImageResult { detections: Vec::new(), json: "{\"error\":\"ä\"}".to_owned() },
        ]
    }

    #[test]
    fn json_has_all_outputs_with_their_shapes() {
        let outputs = Output::ALL.map(|output| RequestedOutput { output, is_binary: false });
        let response = InferResponse::new(["m", "3"], Some("a"), &outputs, &results());
        assert_eq!(response.header_length, None);
        let expected = json!({"model_name": "m", "model_version": "3", "id": "a", "outputs": [
            {"name": "num_detections", "datatype": "INT32", "shape": [2, 1], "data": [2, 0]},
            {"name": "detection_boxes", "datatype": "FP32", "shape": [2, 2, 4],
             "data": [1.0, 2.5, 3.0, 4.0, 1.0, 2.5, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
            {"name": "detection_scores", "datatype": "FP32", "shape": [2, 2], "data": [0.9, 0.5, 0.0, 0.0]},
            {"name": "detection_classes", "datatype": "INT32", "shape": [2, 2], "data": [1, 0, -1, -1]},
            {"name": "detections", "datatype": "BYTES", "shape": [2], "data": ["{\"width\":1}", "{\"error\":\"ä\"}"]},
        ]});
        assert_eq!(serde_json::from_slice::<Value>(&response.body).unwrap(), expected);
    }

    #[test]
    fn binary_outputs_follow_the_json_in_order() {
        let outputs = [(Output::Classes, true), (Output::NumDetections, false), (Output::Detections, true)]
            .map(|(output, is_binary)| RequestedOutput { output, is_binary });
        let response = InferResponse::new(["m", "1"], None, &outputs, &results());
        let (header, binary) = response.body.split_at(response.header_length.unwrap());
        let header: Value = serde_json::from_slice(header).unwrap();
        assert_eq!(header["outputs"][0]["parameters"]["binary_data_size"], 16);
        assert_eq!(header["outputs"][1]["data"], json!([2, 0]));
        assert_eq!((header["outputs"][2].get("data"), header.get("id")), (None, None));
        let classes = [1i32, 0, -1, -1].map(i32::to_le_bytes).concat();
        let texts = [&[11, 0, 0, 0][..], b"{\"width\":1}", &[14, 0, 0, 0], "{\"error\":\"ä\"}".as_bytes()].concat();
        assert_eq!(binary, [classes, texts].concat());
    }

    #[test]
    fn nothing_found_gives_empty_tensors() {
        let outputs = Output::ALL.map(|output| RequestedOutput { output, is_binary: true });
        let response = InferResponse::new(["m", "1"], None, &outputs, &[ImageResult::default()]);
        let header: Value = serde_json::from_slice(&response.body[..response.header_length.unwrap()]).unwrap();
        assert_eq!(header["outputs"][1]["shape"], json!([1, 0, 4]));
        assert_eq!(header["outputs"][1]["parameters"]["binary_data_size"], 0);
    }
}
