//! `runtime detect` on videos. Needs `ffmpeg` on the PATH, or the one that `make test` downloads.

#[allow(dead_code, reason = "its `main` is for users")]
#[path = "../../examples/video.rs"]
mod example;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{MODEL, detect, folder, json, list, read, run};

/// The PATH, extended to contain an `ffmpeg`; `None` if there is no `ffmpeg`.
fn path() -> Option<OsString> {
    let downloaded = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".deps/ffmpeg");
    let folders: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).chain([downloaded]).collect();
    if folders.iter().any(|folder| folder.join("ffmpeg").is_file()) {
        return Some(env::join_paths(folders).unwrap());
    }
    eprintln!("skipped: ffmpeg not found; `make test` downloads it");
    None
}

fn ffmpeg(folder: &TempDir, path: &OsString, arguments: &str) {
    let mut command = Command::new("ffmpeg");
    command.env("PATH", path).current_dir(folder.path()).args(["-v", "error", "-nostdin"]).args(arguments.split(' '));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a lossless video of a test pattern.
const CLIP: &str = "-f lavfi -i testsrc=size=65x49:rate=5 -frames:v 7 -c:v ffv1 -pix_fmt bgr0 clip.mkv";

#[test]
fn every_frame_is_an_image_and_annotated_frames_make_a_video() {
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, CLIP);
    ffmpeg(&folder, &path, "-i clip.mkv -vf select=eq(n\\,3) -frames:v 1 frame.png");
    let outputs = ["--draw", "drawn", "--yolo", "yolo", "--crops", "crops", "--csv", "a.csv", "--ndjson", "a.ndjson"];
    let mut command = detect(&folder);
    command.env("PATH", &path).args(outputs).args(["--max-detections", "2", "1.png", "clip.mkv", "frame.png"]);
    let (code, _, stderr) = run(&mut command);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("images: 9, failed: 0, detections: 18"), "{stderr}");

    let lines: Vec<Value> = read(&folder, "a.ndjson").lines().map(json).collect();
    for (number, line) in lines[1..8].iter().enumerate() {
        assert_eq!((&line["file"], &line["frame"]), (&"clip.mkv".into(), &number.into()));
        assert_eq!((line["time"].as_f64(), &line["width"]), (Some(number as f64 / 5.0), &65.into()));
    }
    assert!(lines[8].get("frame").is_none());
    // A frame gives the same detections as an image file with the same pixels.
    assert_eq!(lines[4]["detections"], lines[8]["detections"]);
    assert_ne!(lines[4]["detections"], lines[1]["detections"]);
    assert_eq!(read(&folder, "a.csv").lines().filter(|line| line.ends_with(",6")).count(), 2);

    assert_eq!(list(&folder.path().join("drawn")), ["1.png", "clip.mp4", "frame.png"]);
    assert_eq!(
        list(&folder.path().join("yolo"))[1..8],
        (0..7).map(|n| format!("clip-00000{n}.txt")).collect::<Vec<_>>()
    );
    let (_, stdout, stderr) = run(detect(&folder).env("PATH", &path).args(["--json", "-", "drawn/clip.mp4"]));
    let frames = json(&stdout);
    assert_eq!(frames.as_array().unwrap().len(), 7, "{stderr}");
    // The sides are padded to even numbers.
    assert_eq!((&frames[6]["width"], &frames[6]["height"], &frames[6]["time"]), (&66.into(), &50.into(), &1.2.into()));
}

#[test]
fn fps_selects_frames() {
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, &CLIP.replace("-frames:v 7", "-frames:v 15"));
    let times = |rate: &str| -> Vec<f64> {
        let (_, stdout, _) = run(detect(&folder).env("PATH", &path).args(["--fps", rate, "--json", "-", "clip.mkv"]));
        json(&stdout).as_array().unwrap().iter().map(|frame| frame["time"].as_f64().unwrap()).collect()
    };
    assert_eq!(times("1"), [0.0, 1.0, 2.0]);
    assert_eq!(times("5/2")[..3], [0.0, 0.4, 0.8]);
    for rate in ["0", "x", "1/0", "nan", "1e9"] {
        let (code, _, stderr) = run(detect(&folder).args(["--fps", rate, "clip.mkv"]));
        assert!(code == 2 && stderr.contains("30000/1001"), "{rate}: {stderr}");
    }
}

#[test]
fn a_variable_frame_rate_requires_fps() {
    let Some(path) = path() else { return };
    let folder = folder();
    // Like screen recordings of browsers: few frames, with timestamps in milliseconds.
    ffmpeg(&folder, &path, &CLIP.replace("rate=5", "rate=1000"));
    let (code, stdout, _) = run(detect(&folder).env("PATH", &path).args(["--json", "-", "clip.mkv"]));
    assert!(code == 3 && stdout.contains("1000/1 frames per second") && stdout.contains("--fps"), "{stdout}");
    let (code, stdout, stderr) =
        run(detect(&folder).env("PATH", &path).args(["--fps", "1000", "--ndjson", "-", "clip.mkv"]));
    assert_eq!((code, stdout.lines().count()), (0, 7), "{stderr}");
}

#[test]
fn frames_have_no_image_ids() {
    let Some(path) = path() else { return };
    let folder = folder();
    let (code, _, stderr) = run(detect(&folder).env("PATH", &path).args(["--coco", "a.coco", "1.png", "7.mp4"]));
    assert!(code == 1 && stderr.contains("`7.mp4`: frames of a video have no image ids"), "{stderr}");
}

#[test]
fn an_invalid_video_is_an_error_and_writes_no_file() {
    let Some(path) = path() else { return };
    let folder = folder();
    std::fs::write(folder.path().join("bad.mp4"), "no video").unwrap();
    let mut command = detect(&folder);
    command.env("PATH", &path).args(["--draw", "drawn", "--json", "-", "bad.mp4", "missing.mp4", "1.png"]);
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!(code, 3, "{stderr}");
    let images = json(&stdout);
    assert!(images[0]["error"].as_str().unwrap().contains("ffmpeg: "), "{stdout}");
    assert!(images[1]["error"].as_str().unwrap().contains("No such file"), "{stdout}");
    assert_eq!(images[2]["width"], 90);
    assert_eq!(list(&folder.path().join("drawn")), ["1.png"]);

    ffmpeg(&folder, &path, CLIP);
    let (code, stdout, _) =
        run(detect(&folder).env("PATH", &path).args(["--max-pixels", "3000", "--json", "-", "clip.mkv"]));
    assert!(code == 3 && stdout.contains("65x49 pixels"), "{stdout}");
}

/// Each job finds other videos broken than its fellow.
#[test]
fn jobs_of_an_array_name_videos_alike_whatever_is_broken() {
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, CLIP);
    let names = ["a", "b", "c", "d"].map(|name| format!("{name}/clip.mkv"));
    for (number, name) in names.iter().enumerate() {
        std::fs::create_dir(folder.path().join(&name[..1])).unwrap();
        std::fs::copy(folder.path().join("clip.mkv"), folder.path().join(name)).unwrap();
        if number == 0 {
            std::fs::write(folder.path().join(name), "no video").unwrap();
        }
    }
    let jobs = |outputs: &[&str], shards: &[&str]| {
        for shard in shards {
            let mut command = detect(&folder);
            command.env("PATH", &path).args(["--ignore-failures", "--shard", shard]).args(outputs).args(&names);
            let (code, _, stderr) = run(&mut command);
            assert_eq!(code, 0, "{stderr}");
        }
    };
    jobs(&["--draw", "drawn", "--yolo", "labels"], &["0/2", "1/2"]);
    jobs(&["--draw", "single/drawn", "--yolo", "single/labels"], &["0/1"]);
    assert_eq!(list(&folder.path().join("drawn")), ["clip-2.mp4", "clip-3.mp4", "clip-4.mp4"]);
    assert_eq!(list(&folder.path().join("drawn")), list(&folder.path().join("single/drawn")));
    let labels = list(&folder.path().join("labels"));
    assert_eq!(labels.len(), 3 * 7 + 1);
    assert_eq!(labels, list(&folder.path().join("single/labels")));
    for label in &labels[..21] {
        assert_eq!(read(&folder, &format!("labels/{label}")), read(&folder, &format!("single/labels/{label}")));
    }
}

#[test]
fn a_missing_ffmpeg_is_an_error_before_the_work_starts() {
    let folder = folder();
    let (code, stdout, stderr) = run(detect(&folder).env("PATH", "").args(["1.png", "clip.mp4"]));
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("`ffmpeg`") && stderr.contains("PATH") && stderr.contains("install"), "{stderr}");
}

#[test]
fn a_playlist_named_like_a_video_opens_no_other_files() {
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, "-f lavfi -i testsrc=size=64x48:rate=5 -frames:v 5 -c:v mpeg4 segment.mp4");
    let segment = folder.path().join("segment.mp4");
    let playlists = [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsegment.mp4\n#EXT-X-ENDLIST\n".to_owned(),
        format!("ffconcat version 1.0\nfile '{}'\n", segment.display()),
        "ffconcat version 1.0\nfile segment.mp4\n".to_owned(),
    ];
    for playlist in playlists {
        std::fs::write(folder.path().join("clip.mp4"), &playlist).unwrap();
        let (code, stdout, stderr) = run(detect(&folder).env("PATH", &path).args(["--ndjson", "-", "clip.mp4"]));
        assert_eq!(code, 3, "{playlist}: {stderr}");
        assert!(stdout.contains("\"error\"") && !stdout.contains("\"frame\""), "{playlist}: {stdout}");
    }
    // The segment itself is a valid video.
    let (code, stdout, _) = run(detect(&folder).env("PATH", &path).args(["--ndjson", "-", "segment.mp4"]));
    assert_eq!((code, stdout.lines().count()), (0, 5));
}

#[test]
fn the_example_covers_objects_in_every_frame() {
    /// Tells the example where its video is.
    const FOLDER: &str = "EXAMPLE_FOLDER";
    if let Some(folder) = env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        example::anonymize(&MODEL.1, &folder.join("clip.mkv"), &folder.join("covered.mp4")).unwrap();
        return;
    }
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, CLIP);
    // The library finds ffmpeg on the PATH of its process.
    let mut child = Command::new(env::current_exe().unwrap());
    child.args(["--exact", "video::the_example_covers_objects_in_every_frame"]);
    assert!(child.env("PATH", &path).env(FOLDER, folder.path()).status().unwrap().success());
    ffmpeg(&folder, &path, "-i clip.mkv before-%d.png");
    ffmpeg(&folder, &path, "-i covered.mp4 after-%d.png");
    for number in 1..=7 {
        let frame = |name: &str| image::open(folder.path().join(format!("{name}-{number}.png"))).unwrap().to_rgb8();
        let (before, after) = (frame("before"), frame("after"));
        let differs = |(x, y, pixel): (u32, u32, &image::Rgb<u8>)| pixel.0[0].abs_diff(after.get_pixel(x, y).0[0]) > 60;
        let changed = before.enumerate_pixels().filter(|pixel| differs(*pixel)).count();
        assert!(changed > 100, "frame {number}: {changed}");
    }
    assert!(!folder.path().join("after-8.png").exists());
}
