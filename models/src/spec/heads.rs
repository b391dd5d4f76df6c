//! The heads section of the spec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::norm::NormSpec;
use super::section::{Section, SpecError, checked, ensure, within};

/// The two heads, which have the same architecture but no common weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote)]
pub struct HeadsSpec {
    /// Channels of their hidden convolutions.
    pub width: usize,
    /// Number of convolutions before the output.
    pub depth: usize,
    /// Norm layer after each of these convolutions; none if absent.
    pub norm: Option<NormSpec>,
    /// Initial score of every anchor (π in the paper, section 4.1), in (0, 1).
    pub prior: f32,
}

impl Section for HeadsSpec {
    fn check(&self) -> Result<(), SpecError> {
        within("heads.width", &self.width, 1.0..=2048.0)?;
        within("heads.depth", &self.depth, 0.0..=16.0)?;
        ensure(self.prior > 0.0 && self.prior < 1.0, "heads.prior", self.prior, "between 0 and 1, both excluded")?;
        let Some(norm) = &self.norm else { return Ok(()) };
        norm.check().map_err(|error| error.inside("heads"))?;
        norm.check_channels("heads.norm.groups", self.width)
    }
}

checked!(HeadsSpec);

impl Default for HeadsSpec {
    fn default() -> Self {
        Self { width: 256, depth: 4, norm: None, prior: 0.01 }
    }
}
