//! The contract of ONNX files: the names that `exporter` writes and `runtime` reads.

/// Key of the spec, as YAML, in a file's `metadata_props`.
pub const SPEC_KEY: &str = "retinanet.spec";

/// Key of the maximum number of candidates per feature level, in files that select candidates.
pub const TOP_K_KEY: &str = "retinanet.top_k";

/// Key of the maximum number of detections per image, in end-to-end files. They select candidates, too.
pub const END_TO_END_KEY: &str = "retinanet.end_to_end";

/// Key of the check, as JSON: what the network must compute for a drawn image.
pub const CHECK_KEY: &str = "retinanet.check";

/// Start of the keys of the providers whose numbers were proven when the file was written.
pub const PROVEN_KEY: &str = "retinanet.proven.";

/// Names of the outputs that the check adds to a file: logits of levels P3 to P7, then offsets, `[N, anchors, width]`.
pub const CHECKED_VALUES: [&str; 10] =
    ["check.0", "check.1", "check.2", "check.3", "check.4", "check.5", "check.6", "check.7", "check.8", "check.9"];

/// Name of the first input: preprocessed images, `[N, 3, H, W]` float32, or resized RGB images, `[N, H, W, 3]` uint8.
pub const IMAGES: &str = "images";

/// Name of the second input of files that read bytes or clip boxes to the image: height and width of the part of each input
/// that contains the image, in its upper left corner, `[N, 2]` int64.
pub const SIZES: &str = "sizes";

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

/// Name of an end-to-end file's first output: the number of detections, `[N, 1]` int32. Later rows are padding.
pub const NUM_DETECTIONS: &str = "num_detections";

/// Name of an end-to-end file's second output: boxes as x1, y1, x2, y2 in pixels of the input, `[N, max_detections, 4]`.
pub const DETECTION_BOXES: &str = "detection_boxes";

/// Name of an end-to-end file's third output: scores, the highest first, `[N, max_detections]`.
pub const DETECTION_SCORES: &str = "detection_scores";

/// Name of an end-to-end file's fourth output: class indices, `[N, max_detections]` int32.
pub const DETECTION_CLASSES: &str = "detection_classes";

/// The input's height and width must be multiples of this: the FPN adds upsampled maps, up to stride 32, to maps of twice the
/// size.
pub const SIDE_MULTIPLE: usize = 32;
