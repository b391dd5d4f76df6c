//! `trainer report`.

use std::fs;

use serde_json::Value;

use crate::project::{Project, assert_contains, stderr, stdout, trainer};

#[test]
fn report_shows_runs_at_any_time_and_beside_each_other() {
    let project = Project::new();
    project.fitted(&["--out", "run"]);
    let data = |page: &str| -> Value {
        let page = project.read(page);
        let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
        serde_json::from_str(data).unwrap()
    };
    let report = |arguments: &[&str]| trainer(project.path(), &[&["report"], arguments].concat());
    let written = data("run/report.html");
    let run = &written["runs"][0];
    assert!(run["sessions"][0]["command"].as_str().unwrap().ends_with("fit --out run"), "{run}");
    let best = project.log("run").into_iter().filter_map(|line| line["validation"]["AP"].as_f64()).reduce(f64::max);
    assert_eq!(run["results"]["summary"]["AP"].as_f64(), best);

    // A run that is being written.
    fs::create_dir(project.path().join("second")).unwrap();
    let log = project.read("run/log.jsonl");
    fs::write(project.path().join("second/log.jsonl"), format!("{}\n?\n{{\"st", log.lines().next().unwrap())).unwrap();
    fs::copy(project.path().join("run/config.yaml"), project.path().join("second/config.yaml")).unwrap();
    let output = report(&["second"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output), "wrote `second/report.html`\n");
    assert_contains(&stderr(&output), &["warning: `second`: log.jsonl is damaged; left out line 2"]);
    assert!(data("second/report.html")["runs"][0]["results"].is_null());

    assert!(report(&["run", "second", "--out", "both.html"]).status.success());
    assert_eq!(data("both.html")["runs"].as_array().unwrap().len(), 2);
    assert_eq!(data("both.html")["runs"][0]["results"], run["results"]);
    for (arguments, message) in [
        (&["run", "second"][..], "pass one with --out"),
        (&["shapes"], "`shapes` contains no run"),
        (&[], "`runs/latest` contains no run"),
        (&["run", "--out", "none/report.html"], "cannot write the report `none/report.html`"),
    ] {
        let output = report(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert_contains(&stderr(&output), &[message]);
    }
}
