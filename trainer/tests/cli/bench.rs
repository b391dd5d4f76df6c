//! `trainer bench`.

use serde_json::Value;

use crate::project::{CONFIG, Project, assert_contains, stderr, stdout, trainer};

#[test]
fn bench_reports_stage_times_and_needs_no_data() {
    let project = Project::new();
    let config = CONFIG.replace("shapes/", "nowhere/").replace("epochs: 2", "epochs: 2, ema_decay: 0.9");
    project.configure(&format!("{config}\noptimizer: {{gradient_accumulation_steps: 2}}\n"));
    let small = ["bench", "--steps", "2", "--width", "64", "--height", "64"];
    let output = trainer(project.path(), &small);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = stdout(&output);
    assert_contains(&table, &["8 images per step, 64x64", "data ", "forward ", "backward ", "optimizer ", "images/s"]);

    let output = trainer(project.path(), &[&small[..], &["--json", "-"]].concat());
    let numbers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = &numbers["seconds"];
    for stage in ["data", "forward", "backward", "optimizer"] {
        assert!(seconds[stage].as_f64().unwrap() > 0.0, "{seconds}");
    }
    assert!(numbers["loader_images_per_second"].as_f64().unwrap() > 0.0);
    assert!(numbers["machine"]["cpu"].is_string() && numbers["memory_mib"][1].as_u64().unwrap() > 0);
}
