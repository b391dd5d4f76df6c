//! The values of configurations by key, and the keys in which they differ.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::TrainConfig;

/// The keys of all values that differ, such as `run.seed`.
///
/// # Errors
/// When a configuration cannot be represented as JSON.
pub(crate) fn differences(before: &TrainConfig, after: &TrainConfig) -> anyhow::Result<Vec<String>> {
    let (before, after) = (values_by_key(&serde_json::to_value(before)?), values_by_key(&serde_json::to_value(after)?));
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    Ok(keys.filter(|key| before.get(*key) != after.get(*key)).cloned().collect())
}

/// Whether a key is one of `keys`, or inside of one.
pub(crate) fn is_within(key: &str, keys: &[&str]) -> bool {
    keys.iter().any(|outer| key.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

/// The values of a configuration by dotted key. Lists count as values.
pub(crate) fn values_by_key(config: &Value) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let Value::Object(sections) = config else { return found };
    for (key, value) in sections {
        match value {
            Value::Object(_) => {
                found.extend(values_by_key(value).into_iter().map(|(inner, value)| (format!("{key}.{inner}"), value)));
            }
            value => _ = found.insert(key.clone(), value.clone()),
        }
    }
    found
}
