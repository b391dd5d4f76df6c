//! Options of a detector.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::batcher::BatchObserver;
use crate::engine::EngineOptions;
use crate::rules::Rules;
use crate::views::ViewOptions;

/// Options of a [`Detector`](crate::Detector).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DetectorOptions {
    /// How the network runs.
    pub engine: EngineOptions,
    /// Overrides of the spec's thresholds and limits.
    pub rules: Rules,
    /// Which views of an image the network runs on.
    pub views: ViewOptions,
    /// Number of engines, each with its own session and thread. They run batches at the same time, which hides copies to
    /// and from a GPU. On the CPU the cores are divided among them, unless the engine's options say how many threads each
    /// has. Default: 1.
    pub instances: NonZeroUsize,
    /// Maximum number of inputs, of one size, that run together. `None`, the default: the model's batch size if it is
    /// fixed, else 1.
    pub max_batch: Option<NonZeroUsize>,
    /// How long the oldest input waits for others to fill its batch. Default: zero, so that a batch consists of the inputs
    /// that came while the engines were busy.
    pub max_queue_delay: Duration,
    /// Is told about every run of the network that succeeds.
    pub observer: Option<BatchObserver>,
}

impl Default for DetectorOptions {
    fn default() -> Self {
        Self {
            engine: EngineOptions::default(),
            rules: Rules::default(),
            views: ViewOptions::default(),
            instances: NonZeroUsize::MIN,
            max_batch: None,
            max_queue_delay: Duration::ZERO,
            observer: None,
        }
    }
}
