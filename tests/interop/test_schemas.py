"""What the programs write and read is as their JSON schemas say."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from conftest import ROOT


def validate(value, program, name):
    """The value, or each of a list, has no other keys than those of the schema."""
    schema = json.loads((ROOT / program / f"schemas/{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    (schema["items"] if "items" in schema else schema)["unevaluatedProperties"] = False
    Draft202012Validator(schema).validate(value)


def test_detections(runtime, folder):
    Path("broken.jpg").write_bytes(b"no image")
    arguments = ["photos/00000.png", "broken.jpg", "--json", "all.json", "--ndjson", "lines.ndjson"]
    runtime("detect", *arguments, expect=3)
    images = json.loads(Path("all.json").read_text())
    validate(images, "runtime", "detections")
    validate([json.loads(line) for line in Path("lines.ndjson").read_text().splitlines()], "runtime", "detections")
    assert images[0]["detections"] and images[1]["error"]
    images[0]["detections"][0]["score"] = "high"
    with pytest.raises(Exception, match="valid under any of the given schemas"):
        validate(images, "runtime", "detections")


def test_evaluation(runtime, trainer, trained):
    details = ["--data", "test.json", "--voc-iou", "--confusion", "--json", "-"]
    runtime("detect", "photos", "--coco", "results.json", "--image-ids", "test.json")
    score = ["score", "--truth", "test.json", "--detections", "results.json", "--json", "-"]
    for report in [
        runtime("eval", "--images", "photos", *details),
        runtime(*score),
        trainer("eval", "--checkpoint", trained / "best.safetensors", "--images", "photos", *details),
    ]:
        validate(json.loads(report), "runtime", "evaluation")
        validate(json.loads(report), "trainer", "evaluation")


@pytest.mark.parametrize(
    ["name", "arguments"],
    [
        ("info", []),
        ("doctor", ["--model", "retinanet.onnx"]),
        ("bench", ["--runs", "1", "--warm-up", "0", "--batch-sizes", "1", "--size", "64x64"]),
    ],
)
def test_other_reports_of_runtime(runtime, name, arguments):
    validate(json.loads(runtime(name, *arguments, "--json", "-")), "runtime", name)


def test_reports_of_trainer(trainer, data):
    config = ["--config", ROOT / "trainer/configs/shapes.yaml"]
    check = trainer("check", *config, "--data", data, "--suggest-anchors", "--json", "-")
    validate(json.loads(check), "trainer", "check")
    bench = trainer("bench", *config, "--steps", "1", "--json", "-")
    validate(json.loads(bench), "trainer", "bench")


def test_the_log_of_a_run(trained):
    lines = (trained / "log.jsonl").read_text().splitlines()
    assert len(lines) > 100
    for line in lines:
        validate(json.loads(line), "trainer", "log")


def test_configurations(trainer, trained):
    trainer("init")
    configs = [Path("retinanet.yaml"), trained / "config.yaml", *(ROOT / "trainer/configs").glob("*.yaml")]
    assert len(configs) > 3
    for config in configs:
        validate(yaml.safe_load(config.read_text()), "trainer", "configuration")
