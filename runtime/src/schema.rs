//! JSON schemas of the files that the programs write and read. <https://json-schema.org/draft/2020-12>

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde_json::Value;

/// Schemas by the names of their files, without extension.
pub type Schemas = Vec<(&'static str, Schema)>;

/// The schema of what is written from a `T`.
pub fn written<T: JsonSchema>() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>();
    // What is written has no use for defaults.
    RecursiveTransform(|schema: &mut Schema| drop(schema.remove("default"))).transform(&mut schema);
    RecursiveTransform(plain_text).transform(&mut schema);
    schema
}

/// The schema of what is read as a `T`, with its defaults.
pub fn read<T: JsonSchema>() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    RecursiveTransform(short_default).transform(&mut schema);
    RecursiveTransform(plain_text).transform(&mut schema);
    schema
}

/// Doc comments speak to readers of the code: `None` is null in JSON, and names are no links.
fn plain_text(schema: &mut Schema) {
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace("[`", "`").replace("`]", "`").replace("`None`", "`null`");
    }
}

/// The keys of a section have defaults, which that of the section would repeat. Numbers of single precision have as
/// many digits as they need.
fn short_default(schema: &mut Schema) {
    match schema.get_mut("default") {
        Some(Value::Object(_)) => drop(schema.remove("default")),
        Some(value) => shorten(value),
        None => {}
    }
}

fn shorten(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Number(number) => {
            let single = number.as_f64().filter(|_| number.is_f64()).map(|number| (number, number as f32));
            if let Some((_, single)) = single.filter(|(number, single)| f64::from(*single) == *number) {
                *value = single.to_string().parse::<f64>().map_or(Value::Null, Value::from);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Section {
        /// A threshold; `None` for [`f32::MAX`].
        threshold: Option<f32>,
        sizes: [f64; 2],
        count: u32,
    }

    impl Default for Section {
        fn default() -> Self {
            Self { threshold: Some(0.05), sizes: [0.1, 0.5], count: 3 }
        }
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Whole {
        #[serde(default)]
        section: Section,
    }

    #[test]
    fn defaults_are_those_of_keys_with_the_digits_of_their_precision() {
        let schema = read::<Whole>();
        assert_eq!(schema.pointer("/properties/section/default"), None);
        let default = |key: &str| schema.pointer(&format!("/$defs/Section/properties/{key}/default")).cloned();
        assert_eq!(default("threshold"), Some(json!(0.05)));
        assert_eq!(default("sizes"), Some(json!([0.1, 0.5])));
        assert_eq!(default("count"), Some(json!(3)));
    }

    #[test]
    fn what_is_written_requires_every_key_and_has_no_defaults() {
        let schema = written::<Section>();
        assert_eq!(schema.get("required"), Some(&json!(["threshold", "sizes", "count"])));
        let threshold = schema.pointer("/properties/threshold").unwrap();
        assert_eq!(threshold.get("default"), None);
        assert_eq!(threshold["description"], "A threshold; `null` for `f32::MAX`.");
    }
}
