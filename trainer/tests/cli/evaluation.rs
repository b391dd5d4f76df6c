//! The validation of a run beside `trainer eval` and the training loss.

use serde_json::{Value, json};

use crate::project::{CONFIG, Project, assert_contains, stderr, trainer};

#[test]
fn ap_of_validation_is_that_of_eval() {
    let project = Project::new();
    // Every anchor is a candidate for every class.
    let all = "model.postprocessing.score_threshold=0";
    for (run, more) in [
        ("plain", "run.seed=0"),
        ("soft", "model.postprocessing.soft_nms=0.5"),
        ("agnostic", "model.postprocessing.suppression=class_agnostic"),
        ("capped", "model.postprocessing.max_detections=150"),
    ] {
        project.fitted(&["--out", run, "--set", all, "--set", more]);
        let validations = project.validations(run);
        let best = validations.iter().map(|v| v["AP"].as_f64().unwrap()).fold(f64::MIN, f64::max);
        assert!(best > 0.0, "{run}: {validations:?}");
        for (checkpoint, expected) in [("last", validations[1]["AP"].as_f64().unwrap()), ("best", best)] {
            let checkpoint = format!("{run}/{checkpoint}.safetensors");
            let evaluated = ["eval", "--checkpoint", &checkpoint, "--data", "shapes/val.json", "--json", "-"];
            let output = trainer(project.path(), &[&evaluated[..], &["--images", "shapes/val"]].concat());
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["AP"].as_f64(), Some(expected), "{checkpoint}: {}", stderr(&output));
        }
    }
}

#[test]
fn validation_loss_is_that_of_training() {
    let project = Project::new();
    // Training leaves out a crowd region and an invalid box.
    project.edit_annotations(|coco| {
        coco["annotations"][0]["iscrowd"] = 1.into();
        coco["annotations"][1]["bbox"] = json!([900, 900, 10, 10]);
        coco["annotations"][2]["bbox"] = json!([-5, 3, 40, 90]);
    });
    let config = CONFIG.replace("shapes/val", "shapes/train").replace("kind: batch", "kind: frozen_batch");
    let config = config.replace(
        "\nrun: {",
        "\n  bad_annotations: drop\naugmentation: {horizontal_flip: 0}\nrun: {precision: float32, ",
    );
    project.configure(&format!("{config}\noptimizer: {{learning_rate: 0.0}}\n"));
    for (run, normalizer, batch_size) in [("image", "image", 4), ("batch", "batch", 6)] {
        let set = [format!("loss.normalizer={normalizer}"), format!("run.batch_size={batch_size}")];
        let message = project.fitted(&["--out", run, "--set", &set[0], "--set", &set[1]]);
        assert_contains(&message, &["; validation: classification loss ", "AP50"]);
        let log = project.log(run);
        let epoch = log.iter().find(|line| line["validation"].is_object()).unwrap();
        for part in ["classification_loss", "box_loss"] {
            let [training, validation] = [&epoch[part], &epoch["validation"][part]].map(|loss| loss.as_f64().unwrap());
            // Sums of float32 in another order.
            assert!(training > 0.0 && (training / validation - 1.0).abs() < 1e-5, "{part}: {training}, {validation}");
        }
    }
}
