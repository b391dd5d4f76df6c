//! Runs an ONNX file with tract and compares the outputs with ONNX Runtime's: `exchange-tract FILE.onnx FOLDER`. The
//! folder contains the files `images` and one per output (float32, native byte order), and the text file `shape` with
//! the input's four dimensions.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tract_onnx::prelude::*;

/// Maximum difference between tract and ONNX Runtime: the exporter's tolerance for offsets in fp32.
const TOLERANCE: f32 = 1e-3;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [model, folder] = &arguments[..] else { anyhow::bail!("usage: exchange-tract FILE.onnx FOLDER") };
    let folder = Path::new(folder);
    let shape = std::fs::read_to_string(folder.join("shape"))?;
    let shape: Vec<usize> = shape.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let images = Tensor::from_shape(&shape, &read_floats(&folder.join("images"))?)?;
    let network = tract_onnx::onnx()
        .model_for_path(model)?
        .with_input_fact(0, f32::fact(&shape).into())?
        .into_optimized()?
        .into_runnable()?;
    let outputs = network.run(tvec!(images.into()))?;
    // With `--top-k`, rounding changes the order of candidates with nearly equal scores; only scores are comparable.
    let names: &[&str] = if folder.join("scores").exists() { &["scores"] } else { &["classification", "regression"] };
    for (name, output) in names.iter().zip(outputs) {
        let expected = read_floats(&folder.join(name))?;
        let found = output.to_plain_array_view::<f32>()?;
        let found = found.as_slice().context("an output is not contiguous")?;
        ensure!(expected.len() == found.len(), "`{name}` has {} values, expected {}", found.len(), expected.len());
        let difference = expected.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{model}: {name} differs by at most {difference:.1e}");
        ensure!(difference <= TOLERANCE, "`{name}` differs by {difference}, more than {TOLERANCE}");
    }
    Ok(())
}

/// Reads a file of float32 values.
fn read_floats(path: &Path) -> Result<Vec<f32>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let chunks = bytes.chunks_exact(4);
    Ok(chunks.map(|chunk| f32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])).collect())
}
