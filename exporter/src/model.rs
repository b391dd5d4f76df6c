//! The model: a graph with all that a reader needs to use it, as the bytes of an ONNX file.

use models::{ModelSpec, Provenance};
use prost::Message;
use runtime::SPEC_KEY;

use crate::graph::Graph;
use crate::onnx::{ModelProto, OperatorSetIdProto, StringStringEntryProto};

/// Version of ONNX's operators: the last before Resize got settings that engines differ in, and old enough (2022) for
/// every engine in use. Nothing newer is needed.
const OPSET: i64 = 17;

/// Version of the file format that came out with this operator set, in ONNX 1.12.
const IR_VERSION: i64 = 8;

/// Key of the program that made the weights.
const PROGRAM_KEY: &str = "retinanet.program";

/// Key of the number of epochs that the weights were trained for.
const EPOCH_KEY: &str = "retinanet.epoch";

/// Key of the AP that the weights reached on their validation data.
const AP_KEY: &str = "retinanet.ap";

/// The ONNX file. The same inputs give the same bytes.
///
/// Its `metadata_props` hold the spec as YAML, which makes it all that the runtime needs, and where the weights came from.
pub fn encode(graph: Graph, spec: &ModelSpec, provenance: &Provenance) -> Vec<u8> {
    let name = format!("RetinaNet with ResNet-{}", spec.backbone.depth);
    let Provenance { program, epoch, ap, .. } = provenance;
    let metadata = [
        (SPEC_KEY, Some(spec.to_yaml())),
        (PROGRAM_KEY, Some(program.clone())),
        (EPOCH_KEY, epoch.map(|epoch| epoch.to_string())),
        (AP_KEY, ap.map(|ap| ap.to_string())),
    ];
    let metadata = metadata
        .into_iter()
        .filter_map(|(key, value)| value.map(|value| StringStringEntryProto { key: key.to_owned(), value }));
    let model = ModelProto {
        ir_version: IR_VERSION,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: format!(
            "{name} for {} classes. It says scores and box offsets of all anchors; what the pictures, rows and offsets \
             are is in the metadata, under `{SPEC_KEY}`.",
            spec.class_count()
        ),
        graph: Some(graph.into_proto(&name)),
        metadata_props: metadata.collect(),
    };
    model.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fold::fold_batch_norms;
    use crate::testing::{spec, zeros};
    use crate::trace::trace;
    use models::spec::NormKind;

    fn file(provenance: &Provenance) -> Vec<u8> {
        let spec = spec(18, NormKind::Batch);
        let mut graph = trace(&spec, zeros(&spec)).unwrap();
        fold_batch_norms(&mut graph);
        encode(graph, &spec, provenance)
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes() {
        assert!(file(&Provenance::default()) == file(&Provenance::default()));
    }

    #[test]
    fn a_file_says_what_it_is_and_where_it_came_from() {
        let provenance =
            Provenance { program: "trainer 1.2.3".to_owned(), epoch: Some(7), ap: Some(0.25), origin: None };
        let model = ModelProto::decode(&file(&provenance)[..]).unwrap();
        let metadata: Vec<_> =
            model.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect();
        let yaml = spec(18, NormKind::Batch).to_yaml();
        assert_eq!(
            metadata,
            [
                ("retinanet.spec", yaml.as_str()),
                ("retinanet.program", "trainer 1.2.3"),
                ("retinanet.epoch", "7"),
                ("retinanet.ap", "0.25"),
            ]
        );
        assert_eq!((model.producer_name.as_str(), model.ir_version), ("exporter", 8));
        assert_eq!(model.opset_import, [OperatorSetIdProto { domain: String::new(), version: 17 }]);
        let graph = model.graph.unwrap();
        let names: Vec<_> = graph.input.iter().chain(&graph.output).map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["images", "classification", "regression"]);

        let imported = ModelProto::decode(&file(&Provenance::default())[..]).unwrap();
        assert_eq!(imported.metadata_props.len(), 2, "what is unknown is left out");
    }
}
