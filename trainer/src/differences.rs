//! The keys in which two configurations differ.

use serde_yaml::Value;

use crate::config::TrainConfig;

/// The keys of all values that differ, such as `run.seed`.
///
/// # Errors
/// When a configuration cannot be represented as YAML.
pub(crate) fn differences(before: &TrainConfig, after: &TrainConfig) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    collect(&serde_yaml::to_value(before)?, &serde_yaml::to_value(after)?, "", &mut found);
    Ok(found)
}

/// Whether a key is one of `keys`, or inside of one.
pub(crate) fn is_within(key: &str, keys: &[&str]) -> bool {
    keys.iter().any(|outer| key.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
}

fn collect(before: &Value, after: &Value, key: &str, found: &mut Vec<String>) {
    match (before, after) {
        (Value::Mapping(before), Value::Mapping(after)) => {
            let added = after.keys().filter(|name| !before.contains_key(*name));
            for name in before.keys().chain(added) {
                let inner = name.as_str().unwrap_or_default();
                let inner = if key.is_empty() { inner.to_owned() } else { format!("{key}.{inner}") };
                let value = |mapping: &serde_yaml::Mapping| mapping.get(name).cloned().unwrap_or_default();
                collect(&value(before), &value(after), &inner, found);
            }
        }
        _ if before != after => found.push(key.to_owned()),
        _ => {}
    }
}
