"""Detection on many machines: the blocks of runtime/README.md, "On a cluster", are run here as they stand."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import psutil
import pytest
import yaml

from conftest import ROOT, call
from readmes import blocks

# Of Kubernetes, whose schemas the manifest is checked against.
KUBERNETES = "1.33"

# Spark's two executors are two JVMs with one core each, on this machine.
SPARK = {"SPARK_LOCAL_IP": "127.0.0.1", "PYSPARK_PYTHON": sys.executable}


def recipe(word):
    """The only block of "On a cluster" that has this word."""
    [block] = [
        block for block in blocks(ROOT / "runtime/README.md") if block.section == "On a cluster" and word in block.text
    ]
    return block.text


@pytest.fixture
def names(folder, runtime):
    """600 images of different names, listed in names.txt, and the line that `detect` prints for each of them."""
    drawn = sorted(Path("photos").resolve().iterdir())
    os.mkdir("many")
    for index in range(600):
        (folder / f"many/{index:03}.png").symlink_to(drawn[index % len(drawn)])
    text = "".join(f"{folder}/many/{index:03}.png\n" for index in range(600))
    Path("names.txt").write_text(text)
    return runtime("detect", "--stdin", "--threads", 1, input=text).splitlines()


def assert_whole(results, runtime):
    """Compares the results of all jobs, in the folder results/, with those of one run."""
    parts = [json.loads(path.read_text()) for path in Path("results").glob("*.json")]
    expected = json.loads(runtime("detect", "--json", "-", "photos/"))
    assert len(parts) == results and max(map(len, parts)) <= -(-len(expected) // results)
    by_name = lambda image: os.path.basename(image["file"])
    found = sorted(sum(parts, []), key=by_name)
    assert list(map(by_name, found)) == list(map(by_name, expected))
    assert [image["detections"] for image in found] == [image["detections"] for image in expected]


@pytest.mark.parametrize("engine", ["parallel", "xargs"])
def test_local_jobs_make_one_whole(runtime, folder, engine):
    os.mkdir("results")
    call("bash", "-euo", "pipefail", "-c", recipe(f"| {engine} "))
    assert_whole(8, runtime)
    # The block also joins them.
    assert [Path(image["file"]).name for image in json.loads(Path("detections.json").read_text())] == sorted(
        os.listdir("photos")
    )


def test_a_slurm_array_makes_one_whole(runtime, folder):
    os.mkdir("results")
    script = recipe("#SBATCH")
    tasks = 1 + int(re.search(r"--array=0-(\d+)", script)[1])
    assert tasks > len(os.listdir("photos")), "some tasks have no image"
    array = {"SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": str(tasks)}
    for task in range(tasks):
        call("bash", "-c", script, env={**array, "SLURM_ARRAY_TASK_ID": str(task)})
    assert_whole(tasks, runtime)


def test_a_kubernetes_job_makes_one_whole(programs, runtime, folder):
    os.mkdir("results")
    manifest = yaml.safe_load(recipe("kind: Job"))
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    [mount] = [mount["mountPath"] for mount in container["volumeMounts"]]
    for index in range(manifest["spec"]["completions"]):
        # Kubernetes replaces the variable, and the volume is this folder.
        replaced = {"$(JOB_COMPLETION_INDEX)": str(index), mount: str(folder)}
        words = [
            re.sub("|".join(map(re.escape, replaced)), lambda found: replaced[found[0]], word)
            for word in container["command"]
        ]
        call(*words, env={"JOB_COMPLETION_INDEX": str(index)})
    assert_whole(manifest["spec"]["completions"], runtime)


def test_spark_survives_a_killed_executor(programs, folder, names):
    script = recipe("pyspark").replace("/data", str(folder))
    Path("detect.py").write_text(script)
    submit = Path(sys.executable).with_name("spark-submit")
    with open("spark.log", "w") as log:
        driver = subprocess.Popen(
            [submit, "--master", "local-cluster[2,1,1024]", "detect.py"],
            env={**os.environ, **SPARK},
            stdout=log,
            stderr=log,
        )
        try:
            executor = executor_at_work(psutil.Process(driver.pid))
            os.kill(executor.pid, signal.SIGKILL)
            assert not Path("detections/_SUCCESS").exists(), "the job ended before the executor was killed"
            code = driver.wait(timeout=240)
        finally:
            for process in [*psutil.Process().children(recursive=True)]:
                process.kill()
    said = Path("spark.log").read_text()
    assert code == 0, said
    assert "Lost executor" in said
    parts = sorted(Path("detections").glob("part-*"))
    assert len(parts) == 6
    assert [line for part in parts for line in part.read_text().splitlines()] == names


def executor_at_work(driver):
    """An executor whose `runtime` has run for half a second."""
    for _ in range(1200):
        for process in driver.children(recursive=True):
            try:
                if process.name() == "runtime" and time.time() - process.create_time() > 0.5:
                    [executor] = [
                        parent
                        for parent in process.parents()
                        if "CoarseGrainedExecutorBackend" in " ".join(parent.cmdline())
                    ]
                    return executor
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    raise AssertionError("no executor runs `runtime`")


def test_spark_fails_with_an_unreadable_image_unless_failures_are_ignored(programs, folder, monkeypatch):
    from pyspark import SparkContext

    for name, value in SPARK.items():
        monkeypatch.setenv(name, value)
    Path("broken.png").write_text("no image")
    images = [
        f"{folder}/{name}" for name in ["broken.png", *[f"photos/{name}" for name in sorted(os.listdir("photos"))[:3]]]
    ]
    detect = f"runtime detect --stdin --threads 1 --quiet --model {folder}/retinanet.onnx"
    with SparkContext("local[1]") as context:
        pipe = lambda command, **options: context.parallelize(images, 2).pipe(command, **options)
        results = [
            json.loads(line)
            for line in pipe(f"{detect} --ignore-failures", env=dict(os.environ), checkCode=True).collect()
        ]
        assert [image["file"] for image in results] == images
        assert ["error" in image for image in results] == [True, False, False, False]
        with pytest.raises(Exception, match="exited with error code 3"):
            pipe(detect, env=dict(os.environ), checkCode=True).collect()
        # Without `checkCode` what a filter does not write is missing, without a word.
        assert pipe(f"{detect} --model missing.onnx", env=dict(os.environ)).collect() == []


def test_ray_keeps_the_order(programs, folder, names):
    script = recipe("import ray").replace("/data", str(folder))
    Path("detect.py").write_text(script)
    call(sys.executable, "detect.py", env={"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"})
    assert Path("detections.ndjson").read_text().splitlines() == names
