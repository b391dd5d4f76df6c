//! What other projects store beside the tensors: class names, thresholds, a configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use models::import::{Labels, Thresholds};
use serde_json::Value;

use super::file::WeightsFile;

/// Where PyTorch files have names of outputs: DeepForest's checkpoints of Lightning, and MMDetection's.
const LABELS: [&[&str]; 6] = [
    &["label_dict"],
    &["hyper_parameters", "label_dict"],
    &["hyper_parameters", "config", "label_dict"],
    &["meta", "dataset_meta", "classes"],
    &["meta", "dataset_meta", "CLASSES"],
    &["meta", "CLASSES"],
];

/// Where `config.json` has them: DeepForest on Hugging Face, and others there.
const CONFIG_LABELS: [&[&str]; 2] = [&["label_dict"], &["id2label"]];

/// What a file says besides tensors.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    pub(super) labels: Option<Labels>,
    pub(super) thresholds: Thresholds,
    /// MMDetection's configuration.
    pub(super) configuration: Option<String>,
}

impl Metadata {
    /// Reads it from a file, and from `config.json` in its folder.
    pub(super) fn of(path: &Path, file: &WeightsFile) -> Self {
        let config = fs::read(path.with_file_name("config.json")).ok();
        let config = config.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Value::Null);
        let in_config = |path: &[&str]| path.iter().try_fold(&config, |value, key| value.get(key)).cloned();
        let found = |place: &[&str], value: Option<Value>, suffix: &str| {
            let place = format!("{}{suffix}", place.join("."));
            labels(&value?).map(|names| Labels { names, place })
        };
        let in_file = LABELS.iter().find_map(|place| found(place, file.value(place), ""));
        let beside = || CONFIG_LABELS.iter().find_map(|place| found(place, in_config(place), " in config.json"));
        let settings = file.value(&["hyper_parameters", "config"]).unwrap_or_else(|| config.clone());
        Self {
            labels: in_file.or_else(beside),
            thresholds: thresholds(&settings),
            configuration: file.value(&["meta", "cfg"]).and_then(|text| Some(text.as_str()?.to_owned())),
        }
    }
}

/// Names by output: from a dictionary of outputs by name, one of names by output, or a list of names. None if it is empty or
/// something else.
fn labels(value: &Value) -> Option<BTreeMap<usize, String>> {
    let index = |number: &Value| usize::try_from(number.as_u64()?).ok();
    let names: BTreeMap<_, _> = match value {
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| match value.as_str() {
                Some(name) => Some((key.parse().ok()?, name.to_owned())),
                None => Some((index(value)?, key.clone())),
            };
            let names: BTreeMap<_, _> = map.iter().map(pair).collect::<Option<_>>()?;
            // Two names of one output are no labels.
            Some(names).filter(|names| names.len() == map.len())?
        }
        Value::Array(names) => {
            let names = names.iter().map(|name| Some(name.as_str()?.to_owned()));
            names.enumerate().map(|(index, name)| Some((index, name?))).collect::<Option<_>>()?
        }
        _ => return None,
    };
    (!names.is_empty()).then_some(names)
}

/// Thresholds under the names of torchvision's arguments.
fn thresholds(settings: &Value) -> Thresholds {
    let number = |key: &str| settings.get(key)?.as_f64().map(|number| number as f32);
    let count = |key: &str| usize::try_from(settings.get(key)?.as_u64()?).ok();
    Thresholds {
        score: number("score_thresh"),
        nms: number("nms_thresh"),
        top_k: count("topk_candidates"),
        max_detections: count("detections_per_img"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_read_in_every_direction() {
        let expected = Some(BTreeMap::from([(0, "Alive".to_owned()), (1, "Dead".to_owned())]));
        for value in [json!({"Dead": 1, "Alive": 0}), json!({"0": "Alive", "1": "Dead"}), json!(["Alive", "Dead"])] {
            assert_eq!(labels(&value), expected, "{value}");
        }
        for value in [json!({}), json!(null), json!([]), json!({"a": 0, "b": 0}), json!({"a": "b"}), json!([1])] {
            assert_eq!(labels(&value), None, "{value}");
        }
    }

    #[test]
    fn thresholds_have_the_names_of_torchvision() {
        let found = thresholds(&json!({"nms_thresh": 0.05, "score_thresh": 0.1, "detections_per_img": 200, "lr": 1}));
        let expected = Thresholds { score: Some(0.1), nms: Some(0.05), top_k: None, max_detections: Some(200) };
        assert_eq!(found, expected);
        assert_eq!(thresholds(&Value::Null), Thresholds::default());
    }
}
