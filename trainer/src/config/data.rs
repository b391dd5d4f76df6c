//! Training and validation data in the configuration.

use std::fmt;
use std::path::PathBuf;

use anyhow::ensure;
use models::dataset::{Format, Source};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::cache::CacheConfig;

/// Training and validation data. Relative paths start from the folder of the configuration, or from `--data`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Training data: a data set, or a list of them.
    #[serde(deserialize_with = "one_or_more")]
    #[schemars(schema_with = "one_or_more_schema")]
    pub train: Vec<DatasetConfig>,
    /// Validation data, on which AP is measured: a data set, or a list of them.
    #[serde(deserialize_with = "one_or_more")]
    #[schemars(schema_with = "one_or_more_schema")]
    pub validation: Vec<DatasetConfig>,
    /// Training images whose rarest class is in a smaller fraction of all images are repeated: by the square root of how many
    /// times rarer it is. Detectron2 calls it `REPEAT_THRESHOLD`; 0.001 is usual for LVIS. `None`: no image is repeated.
    #[serde(default)]
    pub repeat_threshold: Option<f64>,
    /// What to do with invalid annotations.
    #[serde(default)]
    pub bad_annotations: BadAnnotations,
    /// Cache of decoded images.
    #[serde(default)]
    pub cache: CacheConfig,
}

/// A data set; see [`Source`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// COCO JSON file, CSV file, folder of Pascal VOC XML files, or folder of YOLO text files.
    pub annotations: PathBuf,
    /// Folder that file names are relative to. Default: for COCO and CSV the folder of the file; for VOC `JPEGImages`
    /// next to the annotations; for YOLO the path with `images` for the last `labels`; for these two the folder of
    /// annotations where there is no such folder.
    pub images: Option<PathBuf>,
    /// Format of the annotations. Default: detected from the content.
    pub format: Option<Format>,
    /// Text file with the names of the images to use, one per line, with or without extension and folders. Default:
    /// all.
    pub list: Option<PathBuf>,
    /// File of class names, which fixes their order: CSV `name,id`; one name per line; or YOLO's `data.yaml`. Default:
    /// the classes of the data, by id or by name.
    pub classes: Option<PathBuf>,
    /// How often each of its images is in an epoch; 1 for validation.
    #[serde(default = "once")]
    pub repeat: u32,
}

fn once() -> u32 {
    1
}

/// A data set, or a list of them.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<DatasetConfig>, D::Error> {
    struct OneOrMore;
    impl<'de> Visitor<'de> for OneOrMore {
        type Value = Vec<DatasetConfig>;

        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a data set, or a list of data sets")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Ok(vec![DatasetConfig::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    deserializer.deserialize_any(OneOrMore)
}

fn one_or_more_schema(generator: &mut SchemaGenerator) -> Schema {
    let forms = [generator.subschema_for::<DatasetConfig>(), generator.subschema_for::<Vec<DatasetConfig>>()];
    json_schema!({ "anyOf": forms })
}

impl DatasetConfig {
    /// Where the data set is.
    pub fn source(&self) -> Source {
        let Self { annotations, images, format, list, classes, repeat: _ } = self.clone();
        Source { annotations, images, format, list, classes }
    }

    /// Every path that is given.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { annotations, images, format: _, list, classes, repeat: _ } = self;
        std::iter::once(annotations).chain(images).chain(list).chain(classes)
    }
}

impl DataConfig {
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        /// Repeating more often is a mistake.
        const MAX_REPEAT: u32 = 1000;
        ensure!(!self.train.is_empty(), "`data.train` is an empty list, expected a data set");
        ensure!(!self.validation.is_empty(), "`data.validation` is an empty list, expected a data set");
        for DatasetConfig { repeat, annotations, .. } in &self.train {
            ensure!(
                (1..=MAX_REPEAT).contains(repeat),
                "`repeat` of `{}` in `data.train` is {repeat}, expected 1 to {MAX_REPEAT}",
                annotations.display()
            );
        }
        for DatasetConfig { repeat, annotations, .. } in &self.validation {
            ensure!(
                *repeat == 1,
                "`repeat` of `{}` in `data.validation` is {repeat}, but validation uses every image once; remove it",
                annotations.display()
            );
        }
        if let Some(threshold) = self.repeat_threshold {
            ensure!(
                threshold > 0.0 && threshold <= 1.0,
                "`data.repeat_threshold` is {threshold}, expected more than 0, up to 1, or null"
            );
        }
        self.cache.validate()
    }
}

/// What to do with invalid annotations: boxes of zero area or outside their image, unknown classes, missing images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BadAnnotations {
    /// Refuse to start the run.
    #[default]
    Refuse,
    /// Ignore them, and report their number on stderr.
    Drop,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(data: &str) -> anyhow::Result<DataConfig> {
        let data: DataConfig = serde_yaml::from_str(data)?;
        data.validate()?;
        Ok(data)
    }

    fn dataset(annotations: &str) -> DatasetConfig {
        let annotations = annotations.into();
        DatasetConfig { annotations, images: None, format: None, list: None, classes: None, repeat: 1 }
    }

    #[test]
    fn a_split_is_a_data_set_or_a_list_of_them() {
        let one = parse("{train: {annotations: a, format: voc}, validation: {annotations: b}}").unwrap();
        assert_eq!(one.train, [DatasetConfig { format: Some(Format::Voc), ..dataset("a") }]);
        let two = "{train: [{annotations: a, repeat: 3}, {annotations: b}], validation: [{annotations: c}]}";
        let two = parse(two).unwrap();
        assert_eq!(two.train, [DatasetConfig { repeat: 3, ..dataset("a") }, dataset("b")]);
        for config in [one, two] {
            assert_eq!(parse(&serde_yaml::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    #[test]
    fn mistakes_in_data_are_named() {
        for (train, more, message) in [
            ("[]", "", "`data.train` is an empty list"),
            ("a.json", "", "train: invalid type: string \"a.json\", expected a data set, or a list of data sets"),
            ("{annotations: a, folder: b}", "", "train: unknown field `folder`"),
            ("[{annotations: a}, {annotation: b}]", "", "train[1]: unknown field `annotation`"),
            ("{images: a}", "", "train: missing field `annotations` at line 1 column"),
            ("{annotations: a, repeat: 0}", "", "`repeat` of `a` in `data.train` is 0, expected 1 to 1000"),
            ("{annotations: a}", "repeat_threshold: 0", "`data.repeat_threshold` is 0, expected more than 0"),
            (
                "{annotations: a}",
                "cache: {kind: disk}",
                "cache.kind: unknown variant `disk`, expected `none` or `memory`",
            ),
            ("{annotations: a}", "repeat_threshold: .nan", "`data.repeat_threshold` is NaN"),
        ] {
            let text = format!("train: {train}\nvalidation: {{annotations: b}}\n{more}");
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
        let error = parse("{train: {annotations: a}, validation: {annotations: b, repeat: 2}}").unwrap_err();
        assert!(error.to_string().contains("validation uses every image once; remove it"), "{error}");
    }

    #[test]
    fn all_paths_of_a_data_set_can_be_changed() {
        let path = |name: &str| Some(PathBuf::from(name));
        let mut data = DatasetConfig { images: path("b"), list: path("c"), classes: path("d"), ..dataset("a") };
        data.paths_mut().for_each(|path| *path = Path::new("base").join(&*path));
        let source =
            Source { images: path("base/b"), list: path("base/c"), classes: path("base/d"), ..Source::new("base/a") };
        assert_eq!(data.source(), source);
    }
}
