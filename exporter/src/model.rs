//! The model: a graph with its metadata, encoded as an ONNX file.

use models::onnx_contract::{CANDIDATE_SCORES, CLASSIFICATION, DETECTION_SCORES, END_TO_END_KEY, SPEC_KEY, TOP_K_KEY};
use models::spec::BackboneSpec;
use models::{ModelSpec, Origin, Provenance};
use prost::Message;

use crate::external::External;
use crate::onnx::{GraphProto, ModelProto, StringStringEntryProto};
use crate::opset::Opset;
use crate::precision::Precision;

/// Metadata key of the precision: fp32, fp16 or int8.
const PRECISION_KEY: &str = "retinanet.precision";

/// Metadata key of the program that wrote the weights.
const PROGRAM_KEY: &str = "retinanet.program";

/// Metadata key of the number of training epochs.
const EPOCH_KEY: &str = "retinanet.epoch";

/// Metadata key of the AP on the validation data.
const AP_KEY: &str = "retinanet.ap";

/// Metadata key of the imported file that the weights come from: its kind, name and hash.
const ORIGIN_KEY: &str = "retinanet.origin";

/// Options of the ONNX file that do not change what it computes.
#[derive(Clone, Debug, Default)]
pub struct FileOptions {
    /// Version of the ONNX operators.
    pub opset: Opset,
    /// Name of the graph; if absent, the network's, such as `RetinaNet with ResNet-50`.
    pub name: Option<String>,
    /// Doc string of the model; if absent, a description of the network.
    pub doc: Option<String>,
    /// Start of the name of the external data file; if absent, the ONNX file contains all constants.
    pub external_data: Option<String>,
}

/// An encoded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// Bytes of the ONNX file.
    pub(crate) model: Vec<u8>,
    /// The external data file, if any.
    pub(crate) external: Option<External>,
}

/// Encodes a graph as an ONNX file. The same inputs give the same bytes.
///
/// Its `metadata_props` contain the spec as YAML, so that the runtime needs no other file, and the provenance of the
/// weights.
pub(crate) fn encode(
    mut graph: GraphProto,
    spec: &ModelSpec,
    provenance: &Provenance,
    precision: Precision,
    options: &FileOptions,
) -> Encoded {
    options.opset.adapt(&mut graph);
    let network = format!("RetinaNet with {}", backbone(&spec.backbone));
    let outputs = |name: &str| graph.output.iter().any(|value| value.name == name);
    let top_k = spec.postprocessing.top_k.filter(|_| !outputs(CLASSIFICATION));
    let max_detections = spec.postprocessing.max_detections.filter(|_| outputs(DETECTION_SCORES));
    let result = if outputs(DETECTION_SCORES) {
        "detections"
    } else if outputs(CANDIDATE_SCORES) {
        "scores and box offsets of the highest-scoring candidates"
    } else {
        "scores and box offsets of all anchors"
    };
    let default_doc = || {
        format!(
            "{network} for {} classes. It outputs {result}. The metadata entry `{SPEC_KEY}` \
             specifies preprocessing, anchors, box coder and classes.",
            spec.class_count()
        )
    };
    let Provenance { program, epoch, ap, origin } = provenance;
    let metadata = [
        (SPEC_KEY, Some(spec.to_yaml())),
        (PRECISION_KEY, Some(precision.to_string())),
        (TOP_K_KEY, top_k.map(|top_k| top_k.to_string())),
        (END_TO_END_KEY, max_detections.map(|max| max.to_string())),
        (PROGRAM_KEY, Some(program.clone())),
        (EPOCH_KEY, epoch.map(|epoch| epoch.to_string())),
        (AP_KEY, ap.map(|ap| ap.to_string())),
        (ORIGIN_KEY, origin.as_ref().map(|Origin { file, sha256, kind }| format!("{kind}: {file}, SHA-256 {sha256}"))),
    ];
    let metadata = metadata
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| StringStringEntryProto { key: key.to_owned(), value }));
    graph.name.clone_from(options.name.as_ref().unwrap_or(&network));
    let external = options.external_data.as_ref().map(|stem| External::take_from(&mut graph, stem));
    let model = ModelProto {
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: options.doc.clone().unwrap_or_else(default_doc),
        metadata_props: metadata.collect(),
        ..options.opset.model(graph)
    };
    Encoded { model: model.encode_to_vec(), external }
}

/// Bytes that, appended to an ONNX file, add entries to its metadata.
pub(crate) fn metadata(entries: impl IntoIterator<Item = (String, String)>) -> Vec<u8> {
    let entries = entries.into_iter().map(|(key, value)| StringStringEntryProto { key, value });
    ModelProto { metadata_props: entries.collect(), ..ModelProto::default() }.encode_to_vec()
}

/// The backbone's name as its paper and torchvision write it: `ResNet-50`, `ResNeXt-50 32x4d`.
fn backbone(spec: &BackboneSpec) -> String {
    let BackboneSpec { depth, groups, width_per_group, .. } = spec;
    match (groups, width_per_group) {
        (1, 64) => format!("ResNet-{depth}"),
        (1, width) => format!("ResNet-{depth} of width {width}"),
        (groups, width) => format!("ResNeXt-{depth} {groups}x{width}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold_batch_norms;
    use crate::onnx::OperatorSetIdProto;
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::NormKind;

    fn file(provenance: &Provenance) -> Vec<u8> {
        let spec = spec(18, NormKind::Batch);
        let mut graph = trace(&spec, zeros(&spec)).unwrap();
        fold_batch_norms(&mut graph);
        encode(graph, &spec, provenance, Precision::Fp32, &FileOptions::default()).model
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        assert!(file(&Provenance::default()) == file(&Provenance::default()));
    }

    #[test]
    fn metadata_contains_spec_precision_and_provenance() {
        let origin = Origin { file: "retinanet.pth".to_owned(), sha256: "0abc".to_owned(), kind: "yhenon".to_owned() };
        let provenance =
            Provenance { program: "trainer 1.2.3".to_owned(), epoch: Some(7), ap: Some(0.25), origin: Some(origin) };
        let model = ModelProto::decode(&file(&provenance)[..]).unwrap();
        let metadata: Vec<_> =
            model.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
        let yaml = spec(18, NormKind::Batch).to_yaml();
        assert_eq!(
            metadata,
            [
                ("retinanet.spec", yaml.as_str()),
                ("retinanet.precision", "fp32"),
                ("retinanet.program", "trainer 1.2.3"),
                ("retinanet.epoch", "7"),
                ("retinanet.ap", "0.25"),
                ("retinanet.origin", "yhenon: retinanet.pth, SHA-256 0abc"),
            ]
        );
        assert_eq!((model.producer_name.as_str(), model.ir_version), ("exporter", 8));
        assert_eq!(model.opset_import, [OperatorSetIdProto { domain: String::new(), version: 17 }]);
        let graph = model.graph.unwrap();
        let names: Vec<_> = graph.input.iter().chain(&graph.output).map(|value| value.name.as_str()).collect();
        assert_eq!(names, ["images", "classification", "regression"]);

        let imported = ModelProto::decode(&file(&Provenance::default())[..]).unwrap();
        assert_eq!(imported.metadata_props.len(), 3, "unknown values are left out");
    }

    #[test]
    fn a_backbone_with_groups_is_a_resnext() {
        for (groups, width_per_group, name) in
            [(1, 64, "ResNet-50"), (32, 4, "ResNeXt-50 32x4d"), (1, 128, "ResNet-50 of width 128")]
        {
            let spec = BackboneSpec { groups, width_per_group, ..BackboneSpec::default() };
            assert_eq!(backbone(&spec), name);
        }
    }
}
