//! `trainer init`: writes a commented configuration.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use models::spec::{PreprocessingSpec, preset_names, preset_text};
use models::{ModelSpec, Pretrained, write_atomically};

use crate::config::TrainConfig;
use crate::overrides::Overrides;
use crate::progress::print;

/// Write a commented configuration file.
#[derive(Args, Debug)]
pub struct InitArgs {
    /// File to write.
    #[arg(long, short, default_value = "retinanet.yaml")]
    out: PathBuf,
    /// Model to configure.
    #[arg(long, default_value = "resnet50", value_parser = PossibleValuesParser::new(preset_names()))]
    preset: String,
    /// Take the model from this checkpoint or backbone instead, to fine-tune its weights.
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    from: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

/// Comment on the model in `init.yaml`.
const FROM_SCRATCH: &str = "Training starts from random weights, hence `kind: batch` under model.backbone.norm.";

/// Writes the configuration. An existing file is not overwritten.
///
/// # Errors
/// When the file exists or cannot be written, `from` is neither a checkpoint nor a backbone, or an override is invalid.
pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    let path = args.out.display();
    ensure!(!args.out.exists(), "`{path}` exists; remove it, or choose another --out");
    let (text, weights) = match &args.from {
        Some(from) => (text_from(from)?, format!(" --weights {}", from.display())),
        None => (text(&args.preset)?, String::new()),
    };
    let config = args.overrides.parse(&text, &path.to_string(), TrainConfig::parse)?;
    let text = args.overrides.edit(&text)?;
    ensure!(
        TrainConfig::parse(&text).is_ok_and(|written| written == config),
        "cannot set these values in a commented file; write `{path}` without --set and edit it, or pass --set to `trainer fit`"
    );
    write_atomically::<io::Error>(&args.out, |file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write `{path}`"))?;
    print(&format!("wrote `{path}`; set the paths under `data`, then run `trainer fit{weights}`"))
}

/// The configuration with the model of `preset`. It uses batch norm, not frozen batch norm, because training starts from
/// random weights.
fn text(preset: &str) -> anyhow::Result<String> {
    let model = preset_text(preset)?.replace("kind: frozen_batch ", "kind: batch        ");
    Ok(with_model(&model))
}

/// The configuration with the model of pretrained weights. Its classes are left out, so that those of the data are used.
fn text_from(path: &Path) -> anyhow::Result<String> {
    let spec = match Pretrained::open(path)? {
        Pretrained::Detector(checkpoint) => ModelSpec { classes: Vec::new(), ..checkpoint.spec },
        Pretrained::Backbone(backbone) => {
            let (mean, std) = (backbone.spec.mean, backbone.spec.std);
            let preprocessing = PreprocessingSpec { mean, std, round_pixels: true, ..PreprocessingSpec::default() };
            ModelSpec { backbone: backbone.spec.backbone, preprocessing, ..ModelSpec::default() }
        }
    };
    let model = spec.to_yaml().replace("classes: []\n", "");
    let weights = format!("The model of {0}; to fine-tune its weights: trainer fit --weights {0}", path.display());
    Ok(with_model(&model).replace(FROM_SCRATCH, &weights))
}

fn with_model(model: &str) -> String {
    let lines = model.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    include_str!("init.yaml").replace("MODEL\n", &lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::ModelSpec;
    use models::spec::NormKind;

    #[test]
    fn configurations_of_all_presets_are_valid_and_contain_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        for preset in preset_names() {
            let path = folder.path().join(preset);
            run(&InitArgs {
                out: path.clone(),
                preset: preset.to_owned(),
                from: None,
                overrides: Overrides::default(),
            })
            .unwrap();
            let config = TrainConfig::read(&path, None, &Overrides::default()).unwrap();
            let mut model = ModelSpec::preset(preset).unwrap();
            model.backbone.norm.kind = NormKind::Batch;
            assert_eq!(config.model, model);
            let data = serde_yaml::to_string(&config.data).unwrap();
            let defaults: TrainConfig = serde_yaml::from_str(&format!("data:\n{}", indent(&data))).unwrap();
            assert_eq!(TrainConfig { model: defaults.model.clone(), ..config }, defaults);
        }
    }

    #[test]
    fn configurations_contain_every_key_of_the_reference() {
        let text = text("resnet50").unwrap();
        let found: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        let (mut section, mut count, mut missing) = ("", 0, Vec::new());
        for line in include_str!("../CONFIGURATION.md").lines() {
            let name = |start: &str| line.strip_prefix(start).and_then(|rest| rest.split('`').next());
            section = name("## `").unwrap_or(section);
            let Some(key) = name("| `") else { continue };
            count += 1;
            // A key without a section has a table of its own.
            let path =
                if section.ends_with(&format!(".{key}")) { section.to_owned() } else { format!("{section}.{key}") };
            let is_set = found.pointer(&format!("/{}", path.replace('.', "/"))).is_some();
            // Some are comments, since absent ones are not null.
            let last = path.rsplit('.').next().unwrap();
            if !is_set && !text.contains(&format!(" # {last}: ")) {
                missing.push(path);
            }
        }
        assert!(count > 100 && missing.is_empty(), "{count} keys, without {missing:?}");
    }

    fn indent(text: &str) -> String {
        text.lines().map(|line| format!("  {line}\n")).collect()
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("retinanet.yaml");
        std::fs::write(&out, "mine").unwrap();
        let error = run(&InitArgs {
            out: out.clone(),
            preset: "resnet18".to_owned(),
            from: None,
            overrides: Overrides::default(),
        })
        .unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "mine");
    }
}
