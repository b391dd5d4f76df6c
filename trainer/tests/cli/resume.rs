//! `trainer fit --resume`.

use std::fs;
use std::process::{Command, Stdio};

use models::Checkpoint;
use serde_json::json;

use crate::project::{CONFIG, Project, assert_contains, command, stderr, stdout};

/// Ctrl-C or SIGTERM in the middle of an epoch, then `--resume`: same weights as without the interruption.
#[test]
fn interrupted_run_resumes_to_the_same_weights() {
    let project = Project::new();
    project
        .configure(&CONFIG.replace("epochs: 2, batch_size: 4", "epochs: 4, batch_size: 2, save_every_minutes: 0.0005"));
    project.fitted(&["--out", "whole"]);

    let log = project.path().join("interrupted/log.jsonl");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    for (signal, resume) in [("-INT", None), ("-TERM", Some("--resume"))] {
        let before = lines();
        let arguments: Vec<_> = ["fit", "--out", "interrupted"].into_iter().chain(resume).collect();
        let mut command = command(project.path(), &arguments);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        while lines() < before + 2 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let signaled = std::time::Instant::now();
        // Launchers may send a signal twice.
        for _ in 0..2 {
            assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        }
        let output = child.wait_with_output().unwrap();
        assert!(signaled.elapsed().as_secs() < 10);
        assert_eq!(output.status.code(), Some(130), "{signal}: {}", stderr(&output));
        assert_contains(&stderr(&output), &["interrupted; saved after step", "trainer fit --resume --out interrupted"]);
        let saved: u64 =
            stderr(&output).split_once("saved after step ").unwrap().1.split(';').next().unwrap().parse().unwrap();
        let logged = project.log("interrupted").iter().filter_map(|line| line["step"].as_u64()).max();
        assert_eq!(logged, Some(saved), "the log is complete");
    }

    assert_contains(&project.refused(&["--resume", "--out", "interrupted", "--data", "."]), &["--data"]);
    let coco = fs::read(project.path().join("shapes/train.json")).unwrap();
    project.edit_annotations(|coco| coco["annotations"][0]["bbox"] = json!([1, 1, 20, 20]));
    assert_contains(&project.refused(&["--resume", "--out", "interrupted"]), &["have changed", "start a new run"]);
    fs::write(project.path().join("shapes/train.json"), coco).unwrap();

    // Left by a run that was killed while saving.
    let unfinished = project.path().join("interrupted/.last.safetensors.1.partial");
    fs::write(&unfinished, b"half of it").unwrap();
    project.fitted(&["--resume", "--out", "interrupted"]);
    assert_eq!(project.checkpoint("interrupted/last.safetensors"), project.checkpoint("whole/last.safetensors"));
    assert!(!unfinished.exists());
}

/// Kills the run repeatedly, with every option that has a state.
#[test]
fn killed_run_resumes_to_the_same_weights() {
    let project = Project::new();
    let options_with_state = "
augmentation: {vertical_flip: 0.5, mosaic: {probability: 0.5}, large_scale_jitter: {probability: 0.5}, close_mosaic: 2}
optimizer: {kind: adamw, gradient_accumulation_steps: 2}
schedule: {kind: plateau, warmup_steps: 2, patience: 0}
run: {epochs: 4, batch_size: 1, workers: 2, ema_decay: 0.9, save_every_minutes: 0.0005,
  validate_every: 2 steps, keep_checkpoints: 1}
";
    project.configure(&CONFIG.replace("\nrun: {epochs: 2, batch_size: 4, workers: 2}\n", options_with_state));
    project.fitted(&["--out", "whole"]);

    let log = project.path().join("killed/log.jsonl");
    let logged = || fs::read(&log).map_or(0, |bytes| bytes.len());
    let mut kills = 0;
    for attempt in 0.. {
        // Begins the run the first time.
        let mut child = command(project.path(), &["fit", "--out", "killed", "--resume"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Waits for the first new step and then for a varying time before the kill; the seventh attempt may finish.
        let before = logged();
        while attempt < 6 && child.try_wait().unwrap().is_none() && logged() <= before {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        std::thread::sleep(std::time::Duration::from_millis(attempt * 37 % 101));
        if attempt < 6 && child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            kills += 1;
        }
        if child.wait().unwrap().success() {
            break;
        }
        assert!(attempt < 7, "the last attempt was not killed, but failed");
        for file in ["last.safetensors", "best.safetensors", "checkpoints/step-0000002.safetensors"] {
            let path = project.path().join("killed").join(file);
            assert!(!path.exists() || Checkpoint::open(&path).is_ok(), "{file} is damaged");
        }
    }
    assert!(kills >= 3, "killed only {kills} times");
    assert!(project.checkpoint("killed/last.safetensors") == project.checkpoint("whole/last.safetensors"));
    assert!(project.checkpoint("killed/best.safetensors") == project.checkpoint("whole/best.safetensors"));
    let kept = "checkpoints/step-0000008.safetensors";
    assert!(project.checkpoint(&format!("killed/{kept}")) == project.checkpoint(&format!("whole/{kept}")));
    assert_eq!(project.validations("killed"), project.validations("whole"), "every validation is in the log once");
    assert_eq!(project.validations("whole").len(), 6);
    let state = |run: &str| fs::read(project.path().join(run).join("state.safetensors")).unwrap();
    assert!(state("killed") == state("whole"));
    let steps =
        |name: &str| -> Vec<u64> { project.log(name).iter().filter_map(|line| line["step"].as_u64()).collect() };
    assert_eq!(steps("whole"), (1..=12).collect::<Vec<_>>());
    assert_eq!(steps("killed"), steps("whole"), "every step is in the log once");
}

#[test]
fn finished_run_is_left_alone_or_lengthened() {
    let project = Project::new();
    let schedule =
        "schedule: {kind: step, warmup_steps: 1, milestones: [1]}\naugmentation: {mosaic: {probability: 0.5}}\n";
    project.configure(&format!("{CONFIG}\n{schedule}"));
    project.fitted(&["--out", "whole", "--set", "run.epochs=4"]);
    project.fitted(&["--out", "run"]);

    let files = || {
        let entries = fs::read_dir(project.path().join("run")).unwrap().map(|entry| entry.unwrap());
        let files = entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap()));
        files.filter(|(name, _)| name != ".lock").collect::<std::collections::BTreeMap<_, _>>()
    };
    let before = files();
    let resume = ["--resume", "--out", "run"];
    let output = project.fit(&resume);
    assert!(output.status.success(), "{}", stderr(&output));
    let next = "the run has finished its 2 epochs; to continue: trainer fit --resume --out run --set run.epochs=4";
    assert_contains(&stderr(&output), &[next]);
    assert_contains(&stdout(&output), &["best AP"]);
    for (set, message) in [
        ("run.seed=4", "`run.seed` cannot change"),
        ("model.pyramid.width=8", "`model.pyramid.width` cannot change"),
        ("schedule.milestones=[2]", "from 1 to 1"),
    ] {
        assert_contains(&project.refused(&[&resume[..], &["--set", set]].concat()), &[message]);
    }
    assert_eq!(files(), before);

    let longer = project.fitted(&[&resume[..], &["--set", "run.epochs=4", "--set", "run.workers=1"]].concat());
    let message = "4 epochs instead of 2, of which 2 are done; the milestones are [1]: the learning rate stays";
    assert_contains(&longer, &[message]);
    assert_eq!(project.config("run/config.yaml")["run"]["epochs"].as_u64(), Some(4));
    assert_eq!(project.config("run/config.yaml")["run"]["workers"].as_u64(), Some(1));
    assert!(project.checkpoint("run/last.safetensors") == project.checkpoint("whole/last.safetensors"));
    assert_eq!(project.validations("run"), project.validations("whole"));
    let report = project.read("run/report.html");
    assert_contains(&report, &["epochs: 4"]);

    // Without a report, the run was killed after its last save.
    fs::remove_file(project.path().join("run/report.html")).unwrap();
    project.fitted(&resume);
    assert!(project.path().join("run/report.html").exists());
}

#[test]
fn resuming_with_another_configuration_is_an_error() {
    let project = Project::with_run();
    let again = ["--resume", "--out", "run", "--config", "retinanet.yaml"];
    // A finished run is left alone.
    project.fitted(&again);
    project.configure(&CONFIG.replace("epochs: 2", "epochs: 3"));
    assert_contains(&project.refused(&again), &["retinanet.yaml", "run", "started with"]);
}

#[test]
fn run_resumes_on_its_device() {
    let project = Project::with_run();
    // As if trained on a GPU that does not exist.
    let path = project.path().join("run/state.safetensors");
    let state = fs::read(&path).unwrap();
    let (length, rest) = state.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header = String::from_utf8(header.to_vec()).unwrap();
    assert!(header.contains(r#"\"device\":\"cpu\""#), "{header}");
    let header = header.replace(r#"\"device\":\"cpu\""#, r#"\"device\":\"cuda:99\""#);
    fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()).unwrap();
    let longer = ["--resume", "--out", "run", "--set", "run.epochs=3"];
    assert_contains(&project.refused(&longer), &["used cuda:99", "--device", "CUDA"]);
    let message = project.fitted(&[&longer[..], &["--device", "cpu"]].concat());
    assert_contains(&message, &["used cuda:99 and continues on cpu"]);
}
