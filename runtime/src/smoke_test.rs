//! Smoke test of a provider: starts a session and runs a network of one convolution.

use std::time::{Duration, Instant};

use ndarray::Array4;
use ort::value::TensorRef;

use crate::engine::{EngineError, EngineOptions, Fallback, ort_message, session, without_capture};

/// Starts a session with these options, runs it once and returns the time taken.
/// [`Provider::Auto`](crate::Provider::Auto) tests the CPU.
///
/// # Errors
/// When ONNX Runtime is not found, or the provider does not start or compute.
pub fn smoke_test(options: &EngineOptions) -> Result<Duration, EngineError> {
    let started = Instant::now();
    let model = one_convolution();
    let failed = |reason: String| EngineError::Provider { provider: options.provider, reason };
    let ort_failed = |error: ort::Error| failed(ort_message(&error));
    let session = session("the smoke test", options, Fallback::Forbidden, |builder| builder.commit_from_memory(&model));
    let session = session.map_err(|error| match error {
        EngineError::Fallback { .. } => failed("it leaves convolutions to the CPU".to_owned()),
        error => error,
    })?;
    // Held until the session has freed its memory.
    let _guard = options.provider.is_nvidia().then(without_capture);
    let mut session = session;
    let (images, weights) = (Array4::from_elem((1, 1, SIDE, SIDE), 3.0f32), Array4::from_elem((1, 1, 1, 1), 0.5f32));
    let tensor = |array| TensorRef::from_array_view(array).map_err(ort_failed);
    let (images, weights) = (tensor(&images)?, tensor(&weights)?);
    let outputs = session.run(ort::inputs!["x" => images, "w" => weights]).map_err(ort_failed)?;
    let (_, found) = outputs["y"].try_extract_tensor::<f32>().map_err(ort_failed)?;
    if found.len() == SIDE * SIDE && found.iter().all(|value| *value == 1.5) {
        Ok(started.elapsed())
    } else {
        Err(failed(format!("it computes wrong values: {found:?}, expected 1.5 everywhere")))
    }
}

const SIDE: usize = 4;

/// The network as an ONNX file. Field numbers are those of <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>;
/// encoding: <https://protobuf.dev/programming-guides/encoding/>
fn one_convolution() -> Vec<u8> {
    fn number(field: u8, value: u8) -> Vec<u8> {
        vec![field << 3, value]
    }
    fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len())
            .expect("every field here is shorter than 128 bytes, so its length takes one byte");
        [&[field << 3 | 2, length], content].concat()
    }
    let value = |name: &[u8], side: u8| {
        let sides = [1, 1, side, side].map(|side| bytes(1, &number(1, side))).concat();
        let tensor_type = [number(1, 1), bytes(2, &sides)].concat();
        [bytes(1, name), bytes(2, &bytes(1, &tensor_type))].concat()
    };
    let node = [bytes(1, b"x"), bytes(1, b"w"), bytes(2, b"y"), bytes(4, b"Conv")].concat();
    let side = SIDE as u8;
    let inputs = [bytes(11, &value(b"x", side)), bytes(11, &value(b"w", 1))].concat();
    let graph = [bytes(1, &node), bytes(2, b"smoke"), inputs, bytes(12, &value(b"y", side))].concat();
    let mut length = vec![graph.len() as u8 | 0x80, (graph.len() >> 7) as u8];
    if graph.len() < 128 {
        length = vec![graph.len() as u8];
    }
    [number(1, 8), [vec![7 << 3 | 2], length, graph].concat(), bytes(8, &number(2, 17))].concat()
}
