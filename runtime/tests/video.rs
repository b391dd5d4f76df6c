//! `runtime detect` on videos. The tests need `ffmpeg`: the one on the PATH, or what `make test` brings.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(dead_code, reason = "not every test uses all of the fixture")]

mod fixture;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use fixture::{detect, folder, json, list, read, run};

/// The PATH with an `ffmpeg` on it; none where there is none.
fn path() -> Option<OsString> {
    let brought = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(".deps/ffmpeg");
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).chain([brought]).collect();
    if folders.iter().any(|folder| folder.join("ffmpeg").is_file()) {
        return Some(env::join_paths(folders).unwrap());
    }
    eprintln!("skipped: there is no ffmpeg; `make test` brings one");
    None
}

fn ffmpeg(folder: &TempDir, path: &OsString, arguments: &str) {
    let mut command = Command::new("ffmpeg");
    command.env("PATH", path).current_dir(folder.path()).args(["-v", "error", "-nostdin"]).args(arguments.split(' '));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Frames of a moving test image, kept without loss.
const CLIP: &str = "-f lavfi -i testsrc=size=65x49:rate=5 -frames:v 7 -c:v ffv1 -pix_fmt bgr0 clip.mkv";

#[test]
fn every_frame_is_an_image_and_the_annotated_ones_a_video() {
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, CLIP);
    ffmpeg(&folder, &path, "-i clip.mkv -vf select=eq(n\\,3) -frames:v 1 frame.png");
    let made = ["--draw", "drawn", "--yolo", "yolo", "--crops", "crops", "--csv", "a.csv", "--ndjson", "a.ndjson"];
    let mut command = detect(&folder);
    command.env("PATH", &path).args(made).args(["--max-detections", "2", "1.png", "clip.mkv", "frame.png"]);
    let (code, _, stderr) = run(&mut command);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("images: 9, failed: 0, detections: 18"), "{stderr}");

    let lines: Vec<Value> = read(&folder, "a.ndjson").lines().map(json).collect();
    for (number, line) in lines[1..8].iter().enumerate() {
        assert_eq!((&line["file"], &line["frame"]), (&"clip.mkv".into(), &number.into()));
        assert_eq!((line["time"].as_f64(), &line["width"]), (Some(number as f64 / 5.0), &65.into()));
    }
    assert!(lines[8].get("frame").is_none());
    // A frame is detected in as the same image in a file is.
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
    // Of even sides, as players want.
    assert_eq!((&frames[6]["width"], &frames[6]["height"], &frames[6]["time"]), (&66.into(), &50.into(), &1.2.into()));
}

#[test]
fn a_rate_leaves_frames_out() {
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
fn a_video_with_uneven_times_is_not_taken_by_its_clock() {
    let Some(path) = path() else { return };
    let folder = folder();
    // As browsers record a screen: few frames, told in thousandths of a second.
    ffmpeg(&folder, &path, &CLIP.replace("rate=5", "rate=1000"));
    let (code, stdout, _) = run(detect(&folder).env("PATH", &path).args(["--json", "-", "clip.mkv"]));
    assert!(code == 3 && stdout.contains("1000/1 of a second") && stdout.contains("--fps"), "{stdout}");
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
fn what_is_no_video_fails_by_itself_and_leaves_no_file() {
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
    assert!(code == 3 && stdout.contains("65 x 49 pixels"), "{stdout}");
}

#[test]
fn without_ffmpeg_it_is_named_before_the_work() {
    let folder = folder();
    let (code, stdout, stderr) = run(detect(&folder).env("PATH", "").args(["1.png", "clip.mp4"]));
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("`ffmpeg`") && stderr.contains("PATH") && stderr.contains("install"), "{stderr}");
}

#[test]
fn a_playlist_by_the_name_of_a_video_opens_no_other_file() {
    let Some(path) = path() else { return };
    let folder = folder();
    ffmpeg(&folder, &path, "-f lavfi -i testsrc=size=64x48:rate=5 -frames:v 5 -c:v mpeg4 segment.mp4");
    let there = folder.path().join("segment.mp4");
    let playlists = [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsegment.mp4\n#EXT-X-ENDLIST\n".to_owned(),
        format!("ffconcat version 1.0\nfile '{}'\n", there.display()),
        "ffconcat version 1.0\nfile segment.mp4\n".to_owned(),
    ];
    for playlist in playlists {
        std::fs::write(folder.path().join("clip.mp4"), &playlist).unwrap();
        let (code, stdout, stderr) = run(detect(&folder).env("PATH", &path).args(["--ndjson", "-", "clip.mp4"]));
        assert_eq!(code, 3, "{playlist}: {stderr}");
        assert!(stdout.contains("\"error\"") && !stdout.contains("\"frame\""), "{playlist}: {stdout}");
    }
    // The segment itself is a video like any other.
    let (code, stdout, _) = run(detect(&folder).env("PATH", &path).args(["--ndjson", "-", "segment.mp4"]));
    assert_eq!((code, stdout.lines().count()), (0, 5));
}
