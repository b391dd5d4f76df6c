//! The body of `POST /v2/models/M/infer`.

use std::borrow::Cow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde_json::value::RawValue;

use super::INPUT;
use super::error::RequestError;
use super::lists::{BoundedVec, Texts};
use super::parameters::Parameters;
use super::response::{Output, RequestedOutput};

/// An inference request.
#[derive(Clone, Debug, PartialEq)]
pub struct InferRequest {
    /// The client's id, which the response repeats.
    pub id: Option<String>,
    /// The encoded image files, at least one.
    pub images: Vec<Bytes>,
    /// Whether the images are copies, because the body has them as base64.
    pub is_copied: bool,
    /// The outputs to return.
    pub outputs: Vec<RequestedOutput>,
    /// How the images are treated.
    pub parameters: Parameters,
}

/// Inputs that a request may list before it is refused; only one is valid.
const MAX_INPUTS: usize = 16;

/// Outputs that a request may list.
const MAX_OUTPUTS: usize = 16;

/// Dimensions that a shape may list.
const MAX_RANK: usize = 8;

#[derive(Deserialize)]
struct Header<'a> {
    id: Option<String>,
    #[serde(borrow)]
    inputs: BoundedVec<Input<'a>, MAX_INPUTS>,
    outputs: Option<BoundedVec<OutputHeader, MAX_OUTPUTS>>,
    parameters: Option<Parameters>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: String,
    shape: BoundedVec<u64, MAX_RANK>,
    datatype: String,
    #[serde(default)]
    parameters: InputParameters,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputParameters {
    binary_data_size: Option<u64>,
    content_type: Option<String>,
}

#[derive(Deserialize)]
struct OutputHeader {
    name: String,
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputParameters {
    binary_data: Option<bool>,
}

impl InferRequest {
    /// Parses a body. `header_length` is the header `Inference-Header-Content-Length`: the length of the JSON before the
    /// binary data; 0 if the body is one image; `None` if all of it is JSON.
    ///
    /// # Errors
    /// 400 for whatever is wrong, more than `max_images` images included.
    pub fn parse(body: &Bytes, header_length: Option<&str>, max_images: usize) -> Result<Self, RequestError> {
        let (json, binary) = match header_length.map(|text| json_length(text, body)).transpose()? {
            Some(0) => return Self::raw(body.clone()),
            Some(length) => (body.slice(..length), body.slice(length..)),
            None => (body.clone(), Bytes::new()),
        };
        let header = Header::parse(&json)?;
        let parameters = header.parameters.unwrap_or_default();
        let outputs = outputs(header.outputs, parameters.binary_data_output)?;
        let [input]: [Input; 1] = header.inputs.0.try_into().map_err(|inputs: Vec<_>| {
            RequestError::bad(format!("the request has {} inputs, expected one, `{INPUT}`", inputs.len()))
        })?;
        let count = input.images(max_images)?;
        let is_copied = input.parameters.binary_data_size.is_none();
        let images = match input.parameters.binary_data_size {
            Some(size) => split(binary, size, count)?,
            None => {
                let images = input.decode(count)?;
                if !binary.is_empty() {
                    let message = format!("{} bytes follow the JSON, which belong to no input", binary.len());
                    return Err(RequestError::bad(message));
                }
                images
            }
        };
        Ok(Self { id: header.id, images, is_copied, outputs, parameters })
    }

    /// The request whose body is one image.
    fn raw(image: Bytes) -> Result<Self, RequestError> {
        let parameters = Parameters { binary_data_output: true, ..Parameters::default() };
        let outputs = outputs(None, true)?;
        Ok(Self { id: None, images: vec![image], is_copied: false, outputs, parameters })
    }
}

/// The length of the JSON that a header declares.
fn json_length(text: &str, body: &Bytes) -> Result<usize, RequestError> {
    let length = text.trim().parse().ok().filter(|length| *length <= body.len());
    length.ok_or_else(|| {
        let length = body.len();
        RequestError::bad(format!(
            "`Inference-Header-Content-Length: {text}` is not a length within the body of {length} bytes"
        ))
    })
}

impl<'a> Header<'a> {
    fn parse(json: &'a [u8]) -> Result<Self, RequestError> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let header: Self = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!(" at `{path}`") };
            RequestError::bad(format!("the request's JSON is invalid{place}: {}", error.inner()))
        })?;
        deserializer.end().map_err(|error| {
            RequestError::bad(format!(
                "the request's JSON is invalid: {error}; binary data need the header Inference-Header-Content-Length"
            ))
        })?;
        Ok(header)
    }
}

impl Input<'_> {
    /// Number of images that the input declares.
    fn images(&self, max_images: usize) -> Result<usize, RequestError> {
        let Self { name, shape: BoundedVec(shape), datatype, .. } = self;
        if name != INPUT {
            return Err(RequestError::bad(format!("there is no input `{name}`; the only input is `{INPUT}`")));
        }
        if datatype != "BYTES" {
            let message = format!("input `{INPUT}` has datatype {datatype}, expected BYTES: encoded image files");
            return Err(RequestError::bad(message));
        }
        let count = match shape[..] {
            [count] | [count, 1] if count > 0 => count,
            _ => {
                let message = format!("input `{INPUT}` has shape {shape:?}, expected [N] or [N, 1] with N at least 1");
                return Err(RequestError::bad(message));
            }
        };
        usize::try_from(count).ok().filter(|count| *count <= max_images).ok_or_else(|| {
            RequestError::bad(format!("the request has {count} images, at most {max_images} are taken at a time"))
        })
    }

    /// The images in JSON.
    fn decode(&self, count: usize) -> Result<Vec<Bytes>, RequestError> {
        let data = self.data.ok_or_else(|| {
            RequestError::bad(format!("input `{INPUT}` has neither `data` nor the parameter `binary_data_size`"))
        })?;
        if self.parameters.content_type.as_deref() != Some("base64") {
            return Err(RequestError::bad(format!(
                "input `{INPUT}` has its images in JSON; encode them as base64 and say so: \"parameters\": \
                 {{\"content_type\": \"base64\"}}"
            )));
        }
        let mut texts: Vec<Cow<str>> = Vec::new();
        let mut deserializer = serde_json::Deserializer::from_str(data.get());
        Texts { texts: &mut texts, max: count }
            .deserialize(&mut deserializer)
            .map_err(|error| RequestError::bad(format!("`data` of input `{INPUT}` is invalid: {error}")))?;
        if texts.len() != count {
            return Err(RequestError::bad(format!(
                "input `{INPUT}` has {} elements, but its shape declares {count}",
                texts.len()
            )));
        }
        let decode = |(number, text): (usize, Cow<str>)| {
            let image = BASE64_STANDARD.decode(text.as_bytes());
            image.map(Bytes::from).map_err(|error| {
                RequestError::bad(format!("element {number} of input `{INPUT}` is not base64: {error}"))
            })
        };
        texts.into_iter().enumerate().map(decode).collect()
    }
}

/// The elements of a BYTES tensor: each is its length, as little-endian u32, and its bytes.
fn split(binary: Bytes, size: u64, count: usize) -> Result<Vec<Bytes>, RequestError> {
    if size != binary.len() as u64 {
        return Err(RequestError::bad(format!(
            "input `{INPUT}` declares {size} bytes of binary data, but {} follow the JSON",
            binary.len()
        )));
    }
    let mut rest = binary;
    let mut images = Vec::with_capacity(count);
    while !rest.is_empty() {
        let number = images.len();
        if number == count {
            let message = format!("input `{INPUT}` has more elements than the {count} that its shape declares");
            return Err(RequestError::bad(message));
        }
        let end = rest.first_chunk().map(|length| 4 + u32::from_le_bytes(*length) as usize);
        let end = end.filter(|end| *end <= rest.len()).ok_or_else(|| {
            RequestError::bad(format!("element {number} of input `{INPUT}` is longer than the rest of the binary data"))
        })?;
        images.push(rest.split_to(end).slice(4..));
    }
    if images.len() < count {
        let found = images.len();
        return Err(RequestError::bad(format!("input `{INPUT}` has {found} elements, but its shape declares {count}")));
    }
    Ok(images)
}

fn outputs(
    requested: Option<BoundedVec<OutputHeader, MAX_OUTPUTS>>,
    is_binary: bool,
) -> Result<Vec<RequestedOutput>, RequestError> {
    match requested {
        Some(BoundedVec(requested)) if !requested.is_empty() => requested
            .into_iter()
            .map(|OutputHeader { name, parameters }| {
                let output = Output::named(&name)?;
                Ok(RequestedOutput { output, is_binary: parameters.binary_data.unwrap_or(is_binary) })
            })
            .collect(),
        _ => Ok(Output::ALL.map(|output| RequestedOutput { output, is_binary }).to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Priority;

    fn binary(images: &[&[u8]]) -> Vec<u8> {
        images.iter().flat_map(|image| [&u32::try_from(image.len()).unwrap().to_le_bytes(), *image].concat()).collect()
    }

    fn parse(header: &serde_json::Value, data: &[u8]) -> Result<InferRequest, RequestError> {
        let header = header.to_string();
        let body = Bytes::from([header.as_bytes(), data].concat());
        InferRequest::parse(&body, Some(&header.len().to_string()), 8)
    }

    fn input(shape: &[u64], size: usize) -> serde_json::Value {
        json!([{"name": "image", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": size}}])
    }

    #[test]
    fn images_of_a_binary_tensor_are_slices_of_the_body() {
        let data = binary(&[b"first", b"", b"third"]);
        for shape in [&[3][..], &[3, 1]] {
            let header = json!({
                "id": "a", "inputs": input(shape, data.len()),
                "outputs": [{"name": "detections", "parameters": {"binary_data": true}}, {"name": "num_detections"}],
                "parameters": {"priority": 1, "min_score": 0.25},
            });
            let request = parse(&header, &data).unwrap();
            assert_eq!(request.images, [&b"first"[..], b"", b"third"]);
            assert_eq!((request.id.as_deref(), request.is_copied), (Some("a"), false));
            assert_eq!((request.parameters.priority, request.parameters.min_score), (Priority::High, Some(0.25)));
            let expected = [(Output::Detections, true), (Output::NumDetections, false)]
                .map(|(output, is_binary)| RequestedOutput { output, is_binary });
            assert_eq!(request.outputs, expected);
        }
    }

    #[test]
    fn images_in_json_are_base64() {
        for data in [json!(["Zmlyc3Q=", "c2Vj"]), json!([["Zmlyc3Q="], ["c2Vj"]])] {
            let input = json!([{
                "name": "image", "shape": [2, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}, "data": data
            }]);
            let body = Bytes::from(json!({ "inputs": input }).to_string());
            let request = InferRequest::parse(&body, None, 8).unwrap();
            assert_eq!(request.images, [&b"first"[..], b"sec"]);
            assert!(request.is_copied && request.outputs.iter().all(|output| !output.is_binary));
            assert_eq!(request.outputs.len(), Output::ALL.len());
        }
    }

    #[test]
    fn a_body_without_json_is_one_image() {
        let request = InferRequest::parse(&Bytes::from_static(b"JPEG"), Some("0"), 8).unwrap();
        assert_eq!(request.images, [&b"JPEG"[..]]);
        assert!(request.outputs.iter().all(|output| output.is_binary));
    }

    #[test]
    fn outputs_that_are_not_listed_are_binary_on_request() {
        let data = binary(&[b"a"]);
        let header = json!({"inputs": input(&[1], data.len()), "parameters": {"binary_data_output": true}});
        assert!(parse(&header, &data).unwrap().outputs.iter().all(|output| output.is_binary));
    }

    #[test]
    fn wrong_requests_are_errors_that_name_what_is_wrong() {
        let data = binary(&[b"first", b"second"]);
        let with = |change: serde_json::Value| {
            let mut input = input(&[2], data.len());
            input[0].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            json!({ "inputs": input })
        };
        let cases = [
            (json!({}), "missing field `inputs`"),
            (json!({"inputs": []}), "0 inputs"),
            (json!({"inputs": 3}), "`inputs`"),
            (with(json!({"name": "images"})), "no input `images`"),
            (with(json!({"datatype": "UINT8"})), "UINT8"),
            (with(json!({"shape": [2, 2]})), "[2, 2]"),
            (with(json!({"shape": [0]})), "[0]"),
            (with(json!({"shape": [-1]})), "shape"),
            (with(json!({"shape": [1]})), "more elements"),
            (with(json!({"shape": [3]})), "has 2 elements"),
            (with(json!({"shape": [9]})), "at most 8"),
            (with(json!({"shape": [18_446_744_073_709_551_615_u64]})), "at most 8"),
            (with(json!({"parameters": {"binary_data_size": 1}})), "declares 1 bytes"),
            (with(json!({"parameters": {"binary_data_size": u64::MAX}})), "declares"),
            (with(json!({"parameters": {"shared_memory_region": "a"}})), "shared_memory_region"),
            (with(json!({"parameters": {}})), "neither"),
            (with(json!({"parameters": {}, "data": ["a"]})), "base64"),
            (with(json!({"parameters": {"content_type": "base64"}, "data": ["!", "!"]})), "element 0"),
            (with(json!({"parameters": {"content_type": "base64"}, "data": ["a", "a", "a"]})), "more than 2"),
            (with(json!({"parameters": {"content_type": "base64"}, "data": [1]})), "`data`"),
            (json!({"inputs": input(&[2], data.len()), "outputs": [{"name": "boxes"}]}), "`boxes`"),
            (json!({"inputs": input(&[2], data.len()), "parameters": {"min_scor": 0.1}}), "min_scor"),
            (
                json!({"inputs": input(&[2], data.len()), "parameters": {"min_score": "x"}}),
                "`parameters.min_score`: invalid type",
            ),
        ];
        for (header, part) in cases {
            let error = parse(&header, &data).unwrap_err();
            assert!(error.status == 400 && error.message.contains(part), "{header}: {error}");
        }
    }

    #[test]
    fn lengths_beyond_the_body_are_errors() {
        let mut data = binary(&[b"first"]);
        data[0] = 6;
        assert!(parse(&json!({"inputs": input(&[1], data.len())}), &data).unwrap_err().message.contains("element 0"));
        data[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(parse(&json!({"inputs": input(&[1], data.len())}), &data).is_err());
        // Three bytes are not even a length.
        assert!(parse(&json!({"inputs": input(&[1], 3)}), &data[..3]).is_err());
        let body = Bytes::from_static(b"{}");
        for length in ["3", "-1", "x", "99999999999999999999"] {
            let error = InferRequest::parse(&body, Some(length), 8).unwrap_err();
            assert!(error.message.contains(&format!("`Inference-Header-Content-Length: {length}`")), "{error}");
        }
        for json in ["", "{", "[]", "nul", "{\"inputs\":[]} binary"] {
            let error = InferRequest::parse(&Bytes::from(json), None, 8).unwrap_err();
            assert!(error.message.contains("JSON is invalid"), "{error}");
        }
    }
}
