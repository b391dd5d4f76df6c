//! The configuration of a model in a repository of Triton Inference Server.
//! <https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto>

use crate::onnx::{DataType, DimensionValue, GraphProto, ValueInfoProto};

/// Maximum batch size that Triton may form of requests, if the file does not fix it. A file with a fixed batch size is served
/// without batching.
const MAX_BATCH: usize = 8;

/// The configuration as a protocol buffer in text format.
pub(crate) fn config(name: &str, graph: &GraphProto) -> String {
    let is_dynamic = |value: &ValueInfoProto| {
        let size = value.dims().first().and_then(|size| size.value.as_ref());
        matches!(size, Some(DimensionValue::Name(_)))
    };
    let batches = graph.input.iter().all(is_dynamic);
    let values = |values: &[ValueInfoProto]| {
        let lines = values.iter().map(|value| {
            let sizes = value.dims().iter().skip(usize::from(batches)).map(|dimension| match dimension.value {
                Some(DimensionValue::Size(size)) => size.to_string(),
                _ => "-1".to_owned(),
            });
            let sizes = sizes.collect::<Vec<_>>().join(", ");
            format!("  {{ name: \"{}\" data_type: {} dims: [{sizes}] }}", value.name, data_type(value))
        });
        lines.collect::<Vec<_>>().join(",\n")
    };
    let (max_batch, batching) = if batches { (MAX_BATCH, "dynamic_batching {}\n") } else { (0, "") };
    format!(
        "# Written by exporter {}; `exporter --describe model.onnx` says what the values are.\n\
         name: \"{name}\"\nplatform: \"onnxruntime_onnx\"\nmax_batch_size: {max_batch}\n\
         input [\n{}\n]\noutput [\n{}\n]\n{batching}",
        env!("CARGO_PKG_VERSION"),
        values(&graph.input),
        values(&graph.output),
    )
}

fn data_type(value: &ValueInfoProto) -> &'static str {
    match value.data_type() {
        Some(DataType::Uint8) => "TYPE_UINT8",
        Some(DataType::Int32) => "TYPE_INT32",
        Some(DataType::Int64) => "TYPE_INT64",
        _ => "TYPE_FP32",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{folded, spec, zeros};
    use crate::variant::{InputType, VariantOptions};
    use models::spec::NormKind;

    fn config_of(variant: VariantOptions) -> String {
        let mut spec = spec(18, NormKind::Batch);
        spec.preprocessing.round_pixels = true;
        let mut graph = folded(&spec, zeros(&spec));
        variant.apply(&mut graph, &variant.spec(&spec).unwrap());
        config("cells", &graph)
    }

    #[test]
    fn batches_are_dynamic_unless_the_file_fixes_them() {
        let text = config_of(VariantOptions::default());
        for line in [
            "name: \"cells\"",
            "max_batch_size: 8",
            "  { name: \"images\" data_type: TYPE_FP32 dims: [3, -1, -1] }",
            "  { name: \"classification\" data_type: TYPE_FP32 dims: [-1, 2] },",
            "  { name: \"regression\" data_type: TYPE_FP32 dims: [-1, 4] }",
            "dynamic_batching {}",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in {text}");
        }
        let (input, input_size) = (InputType::Uint8, Some("64x96".parse().unwrap()));
        let variant =
            VariantOptions { batch: Some(4), input, input_size, end_to_end: true, ..VariantOptions::default() };
        let text = config_of(variant);
        for line in [
            "max_batch_size: 0",
            "  { name: \"images\" data_type: TYPE_UINT8 dims: [4, 64, 96, 3] },",
            "  { name: \"sizes\" data_type: TYPE_INT64 dims: [4, 2] }",
            "  { name: \"num_detections\" data_type: TYPE_INT32 dims: [4, 1] },",
            "  { name: \"detection_boxes\" data_type: TYPE_FP32 dims: [4, 300, 4] },",
            "  { name: \"detection_classes\" data_type: TYPE_INT32 dims: [4, 300] }",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in {text}");
        }
        assert!(!text.contains("dynamic_batching"));
    }
}
