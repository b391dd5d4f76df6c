//! The contract of ONNX files: the names that `exporter` writes and `runtime` reads.

/// Key of the spec, as YAML, in a file's `metadata_props`.
pub const SPEC_KEY: &str = "retinanet.spec";

/// Key of the maximum number of candidates per feature level, in files that output only candidates.
pub const TOP_K_KEY: &str = "retinanet.top_k";

/// Name of the input: preprocessed images, `[N, 3, H, W]`.
pub const IMAGES: &str = "images";

/// Name of the first output: scores, `[N, anchors, classes]`.
pub const CLASSIFICATION: &str = "classification";

/// Name of the second output: offsets, `[N, anchors, 4]`. In files that output only candidates it is the fourth,
/// `[N, candidates, 4]`.
pub const REGRESSION: &str = "regression";

/// Name of a candidate file's first output: scores, `[N, candidates]`.
pub const CANDIDATE_SCORES: &str = "scores";

/// Name of a candidate file's second output: anchor indices, `[N, candidates]`.
pub const CANDIDATE_ANCHORS: &str = "anchors";

/// Name of a candidate file's third output: class indices, `[N, candidates]`.
pub const CANDIDATE_CLASSES: &str = "classes";

/// The input's height and width must be multiples of this: the FPN adds upsampled maps, up to stride 32, to maps of twice the
/// size.
pub const SIDE_MULTIPLE: usize = 32;
