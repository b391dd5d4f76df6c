"""What the tests share: the programs, a drawn data set, and a detector that was trained on it."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# 150 steps, which take half a minute: such a detector finds shapes, and much else, so that images have many boxes. Its resized
# pixels are bytes, so that it can be exported with `--input uint8`.
SETTINGS = ["run.epochs=3", "optimizer.learning_rate=0.002", "model.preprocessing.round_pixels=true"]
TRAINING = [argument for setting in SETTINGS for argument in ["--set", setting]]
DRAWING = ["--train", "400", "--val", "12", "--test", "24"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """A test that skips fails: what it needs is to be installed, and the reason says what that is."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
    return report


def call(program, *arguments, expect=0, env=None, **options):
    """What a program prints on stdout. It must exit with the code `expect`, and get `env` beside its environment."""
    command = [str(program), *map(str, arguments)]
    env = {**os.environ, **(env or {})}
    done = subprocess.run(command, env=env, text=True, capture_output=True, **options)
    assert done.returncode == expect, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def programs():
    """The folder with `trainer`, `exporter` and `runtime`, which is on the PATH."""
    folder = Path(os.environ.get("PROGRAMS", ROOT / "target/release"))
    for name in ["trainer", "exporter", "runtime"]:
        assert (folder / name).exists(), f"{folder / name} is missing; start the tests with tests/interop/run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        yield folder


@pytest.fixture(scope="session")
def data(programs, tmp_path_factory):
    """A drawn data set: train.json, val.json and test.json, with folders of images of these names."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    call(programs / "trainer", "synth", "--out", folder, *DRAWING)
    return folder


@pytest.fixture(scope="session")
def trained(programs, data):
    """A detector of the drawn shapes: best.safetensors and retinanet.onnx.

    It is kept in target/interop until the programs or its training change.
    """
    config = ROOT / "trainer/configs/shapes.yaml"
    parts = [programs / "trainer", programs / "exporter", config]
    key = hashlib.sha256(repr([DRAWING, TRAINING]).encode())
    for part in parts:
        key.update(part.read_bytes())
    folder = ROOT / "target/interop" / key.hexdigest()[:16]
    if not (folder / "retinanet.onnx").exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        call(programs / "trainer", "fit", "--config", config, "--data", data, "--out", folder, *TRAINING)
        call(programs / "exporter", "--checkpoint", folder / "best.safetensors", "--out", folder / "retinanet.onnx")
    return folder


@pytest.fixture(scope="session")
def model(trained):
    """The ONNX file of a detector of the drawn shapes."""
    return trained / "retinanet.onnx"


@pytest.fixture
def folder(model, data, tmp_path, monkeypatch):
    """The current folder of a test, as READMEs assume it: retinanet.onnx, images photos/, and test.json with boxes."""
    (tmp_path / "retinanet.onnx").symlink_to(model)
    (tmp_path / "photos").symlink_to(data / "test")
    (tmp_path / "test.json").symlink_to(data / "test.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def runtime(programs, folder):
    """Calls `runtime` in the current folder of the test."""
    return lambda *arguments, **options: call(programs / "runtime", *arguments, **options)


@pytest.fixture
def trainer(programs, folder):
    """Calls `trainer` in the current folder of the test."""
    return lambda *arguments, **options: call(programs / "trainer", *arguments, **options)


@pytest.fixture
def detections(runtime):
    """What `detect` finds in photos/, as its JSON says it."""
    images = json.loads(runtime("detect", "photos", "--json", "-"))
    assert sum(len(image["detections"]) for image in images) > 5 * len(images), "the detector finds too little"
    return images
