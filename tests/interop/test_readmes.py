"""The fenced blocks of the READMEs: their commands run on small data, and what they print is what is shown."""

import json
import os
import re
import shutil
import socket
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

# The first word after a fence; without a word it is `sh`. `console` has commands after `$` and what they print, `text`
# has neither.
KINDS = ["sh", "console", "text", "rust", "python", "yaml"]

# The second word says why the commands of a block do not run here, and how many such blocks there are.
NOT_RUN = {
    "make": 2,  # jobs that build, and take minutes; the Makefile must have them
    "cluster": 6,  # test_cluster.py runs them
    "bccd": 1,  # trains for an hour, on data that is not part of the project
}

# What takes hours or a GPU becomes what takes seconds on a CPU.
SMALLER = {
    "--provider cuda": "--provider cpu",
    "trainer init": "trainer init --set run.epochs=1 --set run.batch_size=2 --set model.preprocessing.shorter_side=64 "
    "--set model.preprocessing.longer_side=64",
    "trainer synth": "trainer synth --train 4 --val 2 --test 2",
    "trainer bench": "trainer bench --steps 1",
    # The server answers when it is ready, at a port that is free.
    "runtime serve": "serve",
    "127.0.0.1:8080": "127.0.0.1:$port",
}

# Before the commands of a block.
BEFORE = """
set -euo pipefail
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
serve() {
    runtime serve --listen 127.0.0.1:$port "$@" &
    until curl --silent --fail 127.0.0.1:$port/health >/dev/null; do kill -0 $! && sleep 0.1; done
}
"""

BLOCKS = [(readme, block) for readme in READMES for block in blocks(ROOT / readme)]


def of_kind(kind):
    """The blocks of a kind that run here."""
    found = [(readme, block) for readme, block in BLOCKS if (block.info or ["sh"])[0] == kind and len(block.info) < 2]
    return pytest.mark.parametrize(
        ["readme", "block"], found, ids=[f"{readme}:{block.line}" for readme, block in found]
    )


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
    for name in ["photo.jpg", "street.jpg"]:
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


def run(commands):
    """What commands print on stdout."""
    for text, smaller in SMALLER.items():
        commands = commands.replace(text, smaller)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = "" if "serve" in commands or "$port" not in commands else "serve\n"
    return call("bash", "-c", BEFORE + server + commands, env={"port": str(port)})


@of_kind("sh")
def test_commands_run(reader, readme, block):
    run(block.text)


@of_kind("console")
def test_commands_print_what_is_shown(reader, readme, block):
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.M)
    assert parts[0] == "", "a console block begins with a command"
    for command, shown in zip(parts[1::2], parts[2::2], strict=True):
        assert masked(run(command)) == masked(shown), command


def masked(text):
    """The lines of a text without numbers, the spaces that align them, and the classes found. File names stay."""
    lines = text.strip().splitlines()
    for pattern, mask in [
        (r"(?<![\w/])\d+(\.\d+)?(?![\w/])", "0"),
        (r"\b(disk|ring|square|triangle|star)\b", "class"),
        (r"\s+", " "),
    ]:
        lines = [re.sub(pattern, mask, line) for line in lines]
    return lines


@of_kind("rust")
def test_examples_in_rust_are_those_that_the_crate_compiles(readme, block):
    documentation = "".join(f"//! {line}".rstrip() + "\n" for line in block.text.splitlines())
    assert documentation in (ROOT / readme).with_name("src").joinpath("lib.rs").read_text()


def test_every_block_runs_or_says_why_not():
    kinds, tags = zip(*[((block.info or ["sh"])[0], tuple(block.info[1:])) for _, block in BLOCKS])
    assert set(kinds) <= set(KINDS)
    assert Counter(sum(tags, ())) == NOT_RUN
    makefile = (ROOT / "Makefile").read_text()
    for _, block in BLOCKS:
        if block.info[1:] == ["make"]:
            for target in re.findall(r"^make +(\w+)", block.text, flags=re.M):
                assert f"\n{target}:" in makefile, target
