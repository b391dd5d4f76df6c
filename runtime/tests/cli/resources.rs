//! What `runtime detect` takes of the machine: providers, threads, memory, disk.

use std::io::{BufRead, BufReader, Write};
use std::process::Command;

use crate::fixture::{detect, folder, json, peak_memory, piped, program, read, run};

#[test]
fn auto_uses_the_first_provider_that_works_and_reports_it() {
    let folder = folder();
    let (code, _, stderr) = run(detect(&folder).args(["--provider", "auto", "1.png"]));
    assert_eq!(code, 0, "{stderr}");
    // With a GPU or OpenVINO, `auto` does not use the CPU.
    assert!(stderr.starts_with("auto: "), "{stderr}");
    assert_eq!(stderr.contains("auto: using cpu"), stderr.contains("auto: skipped openvino:cpu: "), "{stderr}");
}

#[test]
fn auto_ignores_options_of_cuda_on_other_providers() {
    let folder = folder();
    let doctor = json(&run(program(&folder).args(["doctor", "--json", "-"])).1);
    if doctor["providers"][1]["error"].is_null() {
        eprintln!("skipped: this machine has CUDA");
        return;
    }
    let options = ["--provider", "auto", "--cuda-graphs", "--cuda-memory", "100", "--no-tf32", "1.png"];
    let (code, _, stderr) = run(detect(&folder).args(options));
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_separate_thread_pool_does_not_change_results() {
    let folder = folder();
    let found = |arguments: &[&str]| run(detect(&folder).args(["--json", "-", "1.png"]).args(arguments)).1;
    let expected = found(&[]);
    assert!(expected.contains("cat"));
    assert_eq!(found(&["--threads", "2", "--affinity", "0"]), expected);
}

/// The control group `name` of this kernel with a quota of one core, if this machine lets tests create one.
#[cfg(target_os = "linux")]
fn control_group(name: &str) -> Option<std::path::PathBuf> {
    let set = |folder: std::path::PathBuf, files: &[(&str, &str)]| {
        std::fs::create_dir(&folder).ok()?;
        let written = files.iter().all(|(file, text)| {
            // A controller that is not enabled has no such file.
            folder.join(file).exists() && std::fs::write(folder.join(file), text).is_ok()
        });
        if !written {
            std::fs::remove_dir(&folder).unwrap();
        }
        written.then_some(folder)
    };
    let root = std::path::Path::new("/sys/fs/cgroup");
    let first = set(root.join("cpu").join(name), &[("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "100000")]);
    first.or_else(|| set(root.join(name), &[("cpu.max", "100000 100000")]))
}

#[cfg(target_os = "linux")]
#[test]
fn the_quota_of_a_control_group_limits_threads() {
    let Some(group) = control_group(&format!("retinanet-{}", std::process::id())) else {
        eprintln!("skipped: cannot create a control group");
        return;
    };
    let folder = folder();
    let detect = detect(&folder);
    let threads = |prefix: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{prefix} exec \"$0\" \"$@\"")]).current_dir(folder.path());
        command.arg(detect.get_program()).args(detect.get_args()).args(["-v", "--workers", "1", "--stdin"]);
        command.envs(detect.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = piped(&mut command);
        let mut stdin = child.stdin.take().unwrap();
        writeln!(stdin, "1.png").unwrap();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
        let count = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().count();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        (count, String::from_utf8(output.stderr).unwrap())
    };
    let join = format!("echo $$ > {}/cgroup.procs;", group.display());
    let ((all, _), (limited, details)) = (threads(""), threads(&join));
    std::fs::remove_dir(&group).unwrap();
    assert!(details.contains("provider: cpu, 1 CPU threads"), "{details}");
    // ONNX Runtime's pool has one thread fewer than it uses cores, since the caller computes too.
    let cores = std::thread::available_parallelism().unwrap().get();
    assert!(cores == 1 || limited < all, "{limited} threads with a quota of one core, {all} on {cores} cores");
}

#[cfg(target_os = "linux")]
#[test]
fn images_in_memory_have_no_more_pixels_than_an_image_may_have() {
    let folder = folder();
    // 18 MB each.
    let images: Vec<_> = (0..10).map(|number| format!("large-{number}.bmp")).collect();
    image::RgbImage::new(3000, 2000).save(folder.path().join(&images[0])).unwrap();
    images[1..]
        .iter()
        .for_each(|name| drop(std::fs::hard_link(folder.path().join(&images[0]), folder.path().join(name))));
    let peak = |max_pixels: &str| {
        let options = ["--workers", "10", "--draw", "drawn", "--max-pixels", max_pixels];
        let mut command = detect(&folder);
        command.args(options).args(&images);
        peak_memory(command)
    };
    let (one, all) = (peak("6000000"), peak("60000000"));
    assert!(one + 80 < all, "{one} MiB with one image in memory, {all} MiB with ten");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    let folder = folder();
    for option in ["--json", "--csv"] {
        let (code, _, stderr) = run(detect(&folder).args([option, "/dev/full", "1.png"]));
        assert_eq!(code, 1);
        assert!(stderr.contains("cannot write `/dev/full`: No space left"), "{stderr}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn only_lists_wait_for_the_disk() {
    let folder = folder();
    let detect = detect(&folder);
    let mut command = Command::new("strace");
    command.current_dir(folder.path()).args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", "trace"]);
    command.arg(detect.get_program()).args(detect.get_args());
    command.envs(detect.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--json", "a.json", "--draw", "drawn", "--crops", "crops", "--yolo", "yolo", "1.png", "3.jpg"]);
    match command.output() {
        // The list, and the name of the list in its folder.
        Ok(output) if output.status.code() == Some(0) => assert_eq!(read(&folder, "trace").matches("sync(").count(), 2),
        _ => eprintln!("skipped: strace is missing or not allowed"),
    }
}
