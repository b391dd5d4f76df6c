//! The summary: output shape, parameters and cost of each layer of the network.

use std::fmt;

use models::{LayerCost, ModelSpec, WeightsError, summarize};

/// The layers of a spec's network, for the input size of a landscape image.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// The layers in the order of the forward pass; a layer that runs on several levels appears once per level.
    pub layers: Vec<LayerCost>,
}

impl Summary {
    /// The summary for one image of the spec's `longer_side` (width) and `shorter_side` (height).
    ///
    /// # Errors
    /// When the spec has no classes or an unknown depth.
    pub fn new(spec: &ModelSpec) -> Result<Self, WeightsError> {
        let placement = spec.preprocessing.place(spec.preprocessing.longer_side, spec.preprocessing.shorter_side);
        let (height, width) = (placement.padded_height as usize, placement.padded_width as usize);
        Ok(Self { height, width, layers: summarize(spec, height, width)? })
    }

    /// Number of trainable parameters.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.parameters).sum()
    }

    /// Billions of multiply-add operations.
    pub fn giga_multiply_adds(&self) -> f64 {
        giga(self.layers.iter().map(|layer| layer.multiply_adds).sum())
    }
}

/// A table with one row per layer.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.layers.iter().map(|layer| layer.name.len()).max().unwrap_or(0);
        writeln!(f, "{:names$}  {:>20}  {:>12}  {:>8}", "layer", "output", "parameters", "GFLOPs")?;
        for LayerCost { name, output, parameters, multiply_adds } in &self.layers {
            let output = format!("{output:?}");
            let parameters = with_commas(*parameters);
            writeln!(f, "{name:names$}  {output:>20}  {parameters:>12}  {:>8.3}", giga(*multiply_adds))?;
        }
        let (parameters, giga) = (with_commas(self.parameters()), self.giga_multiply_adds());
        writeln!(f, "{:names$}  {:>20}  {parameters:>12}  {giga:>8.3}", "total", "")
    }
}

fn giga(multiply_adds: u64) -> f64 {
    multiply_adds as f64 / 1e9
}

/// A number with commas between groups of three digits.
pub fn with_commas(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_in_threes() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (37_968_692, "37,968,692")] {
            assert_eq!(with_commas(number), text);
        }
    }

    #[test]
    fn table_has_a_row_per_layer_and_a_total() {
        let yaml = "{backbone: {depth: 50}, classes: [{id: 1, name: cell}]}";
        let summary = Summary::new(&ModelSpec::from_yaml(yaml).unwrap()).unwrap();
        assert_eq!((summary.height, summary.width), (608, 1024));
        let table = summary.to_string();
        let rows: Vec<_> = table.lines().collect();
        assert_eq!(rows.len(), summary.layers.len() + 2);
        // 7 * 7 * 3 * 64 weights, at 304 * 512 positions.
        let words: Vec<_> = rows[1].split_whitespace().collect();
        assert_eq!(words, ["conv1", "[1,", "64,", "304,", "512]", "9,408", "1.464"]);
        let words: Vec<_> = rows[rows.len() - 1].split_whitespace().collect();
        let totals = [with_commas(summary.parameters()), format!("{:.3}", summary.giga_multiply_adds())];
        assert_eq!(words, ["total", &totals[0], &totals[1]]);
        assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{table}");
    }
}
