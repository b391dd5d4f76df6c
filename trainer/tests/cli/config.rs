//! Configurations, their values on the command line, and `trainer init`.

use std::fs;

use trainer::config::TrainConfig;
use trainer::overrides::Overrides;

use crate::project::{CONFIG, Project, assert_contains, stderr, stdout, trainer};

#[test]
fn configuration_errors_show_file_key_and_line() {
    let project = Project::new();
    project.configure(&CONFIG.replace("epochs: 2", "epoch: 2"));
    assert_contains(&project.refused(&[]), &["retinanet.yaml", "`epoch`", "line 5"]);
    assert_contains(&project.refused(&["--config", "none.yaml"]), &["none.yaml", "trainer init"]);
    assert!(!project.path().join("runs").exists(), "a run that cannot start creates no folder");

    let assert_refused = |config: String, parts: &[&str]| {
        project.configure(&config);
        let path = project.path().join("retinanet.yaml");
        let error = TrainConfig::read(&path, None, &Overrides::default()).unwrap_err();
        assert_contains(&format!("{error:#}"), &[&["retinanet.yaml"], parts].concat());
    };
    assert_refused(CONFIG.replace("epochs: 2", "epochs: many"), &["run.epochs", "many", "line 5"]);
    assert_refused(CONFIG.replace("depth: 50", "depth: 19"), &["backbone.depth", "19", "152"]);
    for (section, message) in [
        ("schedule: {kind: step}", "schedule.milestones"),
        ("schedule: {kind: step, milestones: [2]}", "from 1 to 1"),
        ("schedule: {early_stop: 0}", "schedule.early_stop"),
        ("schedule: {factor: 2}", "schedule.factor"),
        ("optimizer: {nesterov: true}", "optimizer.nesterov"),
        ("optimizer: {gradient_accumulation_steps: 0}", "optimizer.gradient_accumulation_steps"),
        ("optimizer: {backbone_lr_multiplier: -1}", "optimizer.backbone_lr_multiplier"),
        ("loss: {box_loss: l2}", "loss.box_loss"),
    ] {
        assert_refused(format!("{CONFIG}\n{section}\n"), &[message]);
    }
    for (value, message) in [
        ("freeze: heads", "run.freeze"),
        ("ema_decay: 1.0", "run.ema_decay"),
        ("save_every_minutes: 0", "run.save_every_minutes"),
        ("validate_every: 0", "run.validate_every: `0 epochs` is not an interval"),
        ("validate_every: [1]", "such as `2 epochs` or `500 steps`"),
        ("keep_checkpoints: 0", "`run.keep_checkpoints` is 0"),
    ] {
        assert_refused(CONFIG.replace("epochs: 2", &format!("{value}, epochs: 2")), &[message]);
    }
    assert_refused(format!("augmentation: {{mosiac: {{probability: 1}}}}{CONFIG}"), &["`mosiac`", "line 1"]);
    assert_refused(format!("augmentation: {{rotation: 90}}{CONFIG}"), &["`augmentation.rotation` is 90"]);
    assert_refused(
        CONFIG.replace("\nrun:", "\n  cache: {kind: memory, max_gigabytes: 0}\nrun:"),
        &["`data.cache.max_gigabytes` is 0"],
    );
}

#[test]
fn values_of_the_configuration_are_set_on_the_command_line() {
    let project = Project::new();
    fs::create_dir(project.path().join("configs")).unwrap();
    let config = CONFIG.replace("validation: {annotations: shapes/val.json, images: shapes/val}", "validation: {}");
    fs::write(project.path().join("configs/small.yaml"), config).unwrap();
    let relative = ["--config", "configs/small.yaml", "--out", "run", "--set", "run.epochs=9", "--set", "run.epochs=1"];
    let train = "data.train={annotations: ../shapes/train.json, images: ../shapes/train}";
    let validation =
        ["--set", "data.validation.annotations=../shapes/val.json", "--set", "data.validation.images=../shapes/val"];
    project.fitted(&[&relative[..], &["--set", train, "--set", "optimizer.kind=sgd"], &validation].concat());
    let config = project.config("run/config.yaml");
    assert_eq!((config["run"]["epochs"].as_u64(), config["optimizer"]["kind"].as_str()), (Some(1), Some("sgd")));
    assert!(config["data"]["validation"][0]["annotations"].as_str().unwrap().ends_with("shapes/val.json"));

    for (argument, parts) in [
        ("run.epoch=3", &["`--set run.epoch=3`", "unknown field `epoch`", "`epochs`"][..]),
        ("run.epochs=many", &["`--set run.epochs=many`", "run.epochs", "many"]),
        ("run.epochs.last=3", &["`--set run.epochs.last=3`", "`run.epochs` is a value"]),
        ("augmentation.rotation=90", &["`--set augmentation.rotation=90`", "expected 0 to 1"]),
        ("data.train.annotations=none.json", &["none.json"]),
    ] {
        assert_contains(&project.refused(&["--set", argument]), parts);
    }
    project.configure(&CONFIG.replace("epochs: 2", "epochs: many"));
    let message = project.refused(&["--set", "run.seed=3"]);
    assert_contains(&message, &["retinanet.yaml", "run.epochs", "line 5"]);
    assert!(!message.contains("--set"), "{message}");
    assert_eq!(project.fit(&["--set", "run.epochs"]).status.code(), Some(2));

    project.configure(CONFIG);
    let output = trainer(project.path(), &["check", "--set", "model.classes=[{id: 1, name: nothing}]"]);
    assert_contains(&stdout(&output), &["nothing"]);
    let output = trainer(project.path(), &["bench", "--set", "run.batch_size=zero"]);
    assert_contains(&stderr(&output), &["`--set run.batch_size=zero`"]);
}

#[test]
fn warmup_and_close_mosaic_beyond_the_run_give_a_warning() {
    let project = Project::new();
    let output = project.fit(&["--set", "augmentation.close_mosaic=2", "--set", "augmentation.mosaic.probability=1"]);
    let texts =
        ["`schedule.warmup_steps` is 100, but the run has only 4 steps", "`augmentation.close_mosaic` is 2, but"];
    assert_contains(&stderr(&output), &texts);
    let output = project.fit(&["--set", "schedule.warmup_steps=3"]);
    assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
    // Mosaics were never used, and do not affect other random numbers.
    let runs = ["retinanet-1", "retinanet-3"].map(|run| format!("runs/{run}/last.safetensors"));
    project.fitted(&[]);
    assert!(project.checkpoint(&runs[0]) == project.checkpoint(&runs[1]));
}

#[test]
fn frozen_norms_without_pretrained_weights_give_a_warning() {
    let project = Project::new();
    project.configure(&CONFIG.replace("kind: batch", "kind: frozen_batch"));
    let message = project.fitted(&[]);
    assert_contains(&message, &["warning", "frozen_batch", "from scratch"]);
}

#[test]
fn init_writes_values_from_the_command_line_and_keeps_the_comments() {
    let project = Project::new();
    let arguments = [
        "run.workers=3",
        "run.seed=5",
        "data.train.annotations=my file.json",
        "data.train.list=names.txt",
        "augmentation.scale.max=2.0",
        "augmentation.close_mosaic=10",
        "schedule.milestones=[8, 11]",
        "model.classes=[{id: 1, name: cell}]",
        "model.heads.norm={kind: group}",
        "model.backbone.norm.kind=group",
    ];
    let sets = arguments.iter().flat_map(|argument| ["--set", argument]);
    let output = trainer(project.path(), &["init", "--out", "new.yaml"].into_iter().chain(sets).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    let config = project.config("new.yaml");
    assert_eq!((config["run"]["workers"].as_u64(), config["run"]["seed"].as_u64()), (Some(3), Some(5)));
    assert_eq!(config["data"]["train"]["annotations"].as_str(), Some("my file.json"));
    assert_eq!(config["model"]["backbone"]["norm"]["kind"].as_str(), Some("group"));
    let text = project.read("new.yaml");
    let plain = trainer(project.path(), &["init", "--out", "plain.yaml"]);
    assert!(plain.status.success());
    let plain = project.read("plain.yaml");
    let comments = |text: &str| text.matches("# ").count();
    // Of two settings, what is commented out is now set.
    assert_eq!(comments(&text) + 2, comments(&plain), "{text}");

    let refused = trainer(project.path(), &["init", "--out", "no.yaml", "--set", "run.epoch=3"]);
    assert_contains(&stderr(&refused), &["`--set run.epoch=3`", "unknown field `epoch`"]);
    assert!(!project.path().join("no.yaml").exists());
}
