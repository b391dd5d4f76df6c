//! Images that do not fit in memory.

use std::fs;

use image::{Rgb, RgbImage};
use runtime::image_file::{Limits, read};
use runtime::output::Found;
use runtime::{Detector, DetectorOptions, PixelBudget, Tiling, detect_file};

use crate::fixture::{MODEL, detect, folder, json, list, peak_memory, program, read as read_text, run, tiny_model};
use crate::orthomosaic::{SIZE, write_orthomosaic};

#[test]
fn parts_give_the_detections_of_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for orientation in [1, 6, 7] {
        write_orthomosaic(&path(&format!("tiles-{orientation}.tif")), (700, 500), orientation).unwrap();
    }
    let strips = RgbImage::from_fn(500, 700, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x ^ y) as u8]));
    strips.save(path("strips.tif")).unwrap();

    let mut options = DetectorOptions::default();
    options.views.tiling = Some(Tiling { width: 210, height: 170, overlap: 0.2 });
    options.views.flip = true;
    let detector = Detector::open(&MODEL.1, options).unwrap();
    for name in list(folder.path()) {
        let whole = Found::detect(&detector, &read(path(&name)).unwrap()).unwrap();
        assert!(whole.detections.len() > 10, "{name}: {} detections", whole.detections.len());
        for limits in [Limits { pixels: 1000, ..Limits::DEFAULT }, Limits { bytes: 1000, ..Limits::DEFAULT }] {
            let parts = detect_file(&detector, &path(&name), &limits, &PixelBudget::new(limits.pixels)).unwrap();
            assert_eq!(parts, whole, "{name}");
        }
    }
    // Without tiles, and in other formats, the limits hold.
    strips.save(path("a.png")).unwrap();
    let limits = Limits { pixels: 1000, ..Limits::DEFAULT };
    let whole_only = Detector::open(&MODEL.1, DetectorOptions::default()).unwrap();
    for (detector, name) in [(&detector, "a.png"), (&whole_only, "strips.tif")] {
        let error = detect_file(detector, &path(name), &limits, &PixelBudget::new(1000)).unwrap_err().to_string();
        assert!(error.contains("500x700 pixels exceed the limit of 1000 pixels"), "{error}");
    }
}

#[test]
fn parts_are_not_drawn_but_labeled() {
    let folder = folder();
    write_orthomosaic(&folder.path().join("a.tif"), (700, 500), 1).unwrap();
    let tiles = ["--tile", "300", "--max-pixels", "20000", "a.tif", "1.png"];
    let (code, stdout, stderr) = run(detect(&folder).args(["--json", "-", "--yolo", "labels"]).args(tiles));
    let results = json(&stdout);
    let found = results[0]["detections"].as_array().unwrap().len();
    assert!(code == 0 && results[0]["width"] == 700 && found > 0, "{stderr}");
    assert_eq!(read_text(&folder, "labels/a.txt").lines().count(), found);

    for option in ["--draw", "--crops"] {
        let (code, stdout, _) = run(detect(&folder).args(["--json", "-", option, "out"]).args(tiles));
        let results = json(&stdout);
        let error = results[0]["error"].as_str().unwrap();
        assert!(
            code == 3 && error.contains("without --draw and --crops, --tile reads TIFF files of any size"),
            "{error}"
        );
        assert!(results[1]["detections"].is_array(), "{stdout}");
    }
}

/// The decoded image would have 7.2 GB.
#[cfg(target_os = "linux")]
#[test]
fn an_orthomosaic_of_60000_by_40000_pixels_takes_little_memory() {
    const MAX_MEBIBYTES: u64 = 1024;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("retinanet.onnx"), tiny_model()).unwrap();
    write_orthomosaic(&folder.path().join("orthomosaic.tif"), SIZE, 1).unwrap();
    let mut command = program(&folder);
    command.args(["detect", "--tile", "4096", "--tile-overlap", "0", "--json", "a.json", "orthomosaic.tif"]);
    let memory = peak_memory(command);
    let results = json(&read_text(&folder, "a.json"));
    assert_eq!((&results[0]["width"], &results[0]["height"]), (&60_000.into(), &40_000.into()));
    assert!(memory < MAX_MEBIBYTES, "{memory} MiB");
}
