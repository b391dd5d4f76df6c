"""The fenced blocks of the READMEs: their commands run on small data, and what they print is what is shown."""

import json
import os
import re
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from conftest import ROOT, call
from readmes import blocks

READMES = [
    "README.md",
    "CONTRIBUTING.md",
    *[f"{crate}/README.md" for crate in ["trainer", "exporter", "runtime", "models", "tests"]],
]

# The second word says why the commands of a block do not run here, and how many such blocks there are.
NOT_RUN = {
    "make": 3,  # jobs that build, and take minutes; the Makefile must have them
    "cluster": 6,  # test_cluster.py runs them
    "launchers": 1,  # many GPUs and machines
    "bccd": 1,  # trains for an hour, on data that is not part of the project
}

# What takes hours or a GPU becomes what takes seconds on a CPU.
SMALLER = {
    # AP of the few images here changes by more with a single detection.
    "--max-ap-drop 0.005": "--max-ap-drop 0.05",
    "--provider cuda": "--provider cpu",
    "trainer init": "trainer init --set run.epochs=1 --set run.batch_size=2 --set model.preprocessing.shorter_side=64 "
    "--set model.preprocessing.longer_side=64",
    "trainer synth": "trainer synth --train 4 --val 2 --test 2",
    "trainer bench": "trainer bench --steps 1",
    # Files with random numbers are there instead.
    "curl -O https://download.pytorch.org/models/": "ls ",
    # The classes of the drawn shapes.
    "classes=car,bus": "classes=disk,ring",
    # A server that runs until the block ends.
    "runtime serve": "serve",
}

# Before the commands of a block. The server has a port that is free, and is ready when a model answers.
BEFORE = """
set -euo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
curl() { command curl --silent --show-error --fail-with-body "$@"; }
serve() {
    runtime serve --listen 127.0.0.1:$port "$@" &
    until curl --data-binary @photo.jpg 127.0.0.1:$port/detect >/dev/null 2>&1; do
        kill -0 $! || exit
        sleep 0.1
    done
}
"""

# Where the READMEs' servers listen.
SERVER = "127.0.0.1:8080"


def run(commands):
    """What commands print on stdout."""
    for text, smaller in SMALLER.items():
        commands = commands.replace(text, smaller)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if SERVER in commands:
        start = "" if re.search(r"\bserve\b", commands) else "serve\n"
        commands = start + commands.replace(SERVER, f"127.0.0.1:{port}")
    return call("bash", "-c", BEFORE + commands, env={"port": port})


def sh(readme, text):
    """Commands succeed."""
    run(text)


def console(readme, text):
    """Commands, after `$`, print what is shown, but for numbers, the spaces that align them, and the classes found."""
    masks = [
        (r"(?<![\w/])\d+(\.\d+)?(?![\w/])", "0"),
        (r"\b(disk|ring|square|triangle|star)\b", "class"),
        (r"\s+", " "),
    ]

    def masked(line):
        for pattern, mask in masks:
            line = re.sub(pattern, mask, line)
        return line.strip()

    start, *parts = re.split(r"^\$ (.*)\n", text, flags=re.M)
    assert start == "", "the block begins with a command"
    for command, shown in zip(parts[::2], parts[1::2], strict=True):
        assert list(map(masked, run(command).splitlines())) == list(map(masked, shown.splitlines())), command


# What a program in Python expects before it: its README exports such a file.
PREPARED = {
    "exporter/README.md": "exporter --checkpoint coco.safetensors --end-to-end --input uint8 --out retinanet.onnx",
}


def python(readme, text):
    """A program succeeds. Its argument is an image."""
    run(f"{PREPARED.get(readme, '')}\n{sys.executable} - photo.jpg <<'PYTHON'\n{text}PYTHON\n")


def rust(readme, text):
    """An example is one that is compiled with its crate."""
    crate = (ROOT / readme).parent
    documentation = re.sub(r"^//! ?", "", (crate / "src/lib.rs").read_text(), flags=re.M)
    sources = [documentation, *[path.read_text() for path in crate.glob("examples/*.rs")]]
    assert any(text in source for source in sources), "the block is in neither src/lib.rs nor an example"


# By the first word after a fence, which is `sh` if there is none. `text` is not checked.
CHECKS = {check.__name__: check for check in [sh, console, python, rust]}

BLOCKS = [(readme, block) for readme in READMES for block in blocks(ROOT / readme)]
RUN = [(readme, block) for readme, block in BLOCKS if block.kind in CHECKS and not block.tags]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """The files of torchvision that the READMEs import, with random numbers in them."""
    folder = tmp_path_factory.mktemp("weights")
    networks = {
        "resnet50-11ad3fa6.pth": torchvision.models.resnet50(),
        "retinanet_resnet50_fpn_coco-eeacb38b.pth": torchvision.models.detection.retinanet_resnet50_fpn(
            weights=None, weights_backbone=None
        ),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / name)
    return folder


@pytest.fixture
def reader(folder, trained, data, weights, runtime, monkeypatch):
    """The folder of a reader, who has data, weights and what earlier commands made."""
    for file in weights.iterdir():
        (folder / file.name).symlink_to(file)
    few = {"train": 4, "val": 2}
    for split, count in few.items():
        (folder / split).symlink_to(data / split)
        truth = json.loads((data / f"{split}.json").read_text())
        truth["images"] = truth["images"][:count]
        ids = {image["id"] for image in truth["images"]}
        truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] in ids]
        (folder / f"{split}.json").write_text(json.dumps(truth))
    truth = json.loads((data / "test.json").read_text())
    for image in truth["images"]:
        image["file_name"] = "photos/" + image["file_name"]
    for name in ["test.json", "truth.json"]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps(truth))
    runtime("detect", "photos", "--coco", "results.json", "--image-ids", "truth.json")
    # Copies, since commands write files of these names.
    shutil.copytree(trained, "runs/shapes")
    (folder / "runs/latest").symlink_to("shapes")
    shutil.copy(trained / "best.safetensors", "coco.safetensors")
    (folder / "retinanet.onnx").unlink()
    shutil.copy(trained / "retinanet.onnx", "retinanet.onnx")

    image = Image.open("photos/00000.png")
    for name in ["photo.jpg", "street.jpg", "a.jpg", "b.png"]:
        image.save(name)
    image.resize((1500, 1200)).save("aerial.tif")
    photos = [Image.open(path) for path in sorted(Path("photos").iterdir())[:3]]
    (folder / "photos").unlink()
    shutil.copytree(data / "test", "photos")
    for index, photo in enumerate(photos):
        photo.save(f"photos/{index}.jpg")
    monkeypatch.setenv("PATH", str(ROOT / ".deps/ffmpeg"), prepend=os.pathsep)
    call("ffmpeg", "-loglevel", "error", "-framerate", 5, "-i", "photos/%05d.png", "-pix_fmt", "yuv420p", "clip.mp4")
    return folder


@pytest.mark.parametrize(["readme", "block"], RUN, ids=[f"{readme}:{block.line}" for readme, block in RUN])
def test_a_block_does_what_it_says(reader, readme, block):
    CHECKS[block.kind](readme, block.text)


def test_every_block_runs_or_says_why_not():
    for readme, block in BLOCKS:
        assert block.kind in [*CHECKS, "text"] or block.tags, f"{readme}:{block.line}: nothing checks this block"
    assert Counter(tag for _, block in BLOCKS for tag in block.tags) == NOT_RUN
    makefile = (ROOT / "Makefile").read_text()
    for _, block in BLOCKS:
        if block.tags == ["make"]:
            for target in re.findall(r"^make +(\w+)", block.text, flags=re.M):
                assert f"\n{target}:" in makefile, target
