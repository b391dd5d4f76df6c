"""Expected average precision from pycocotools, on random data sets full of edge cases.

    pip install pycocotools==2.0.11
    python evaluation.py write                      # writes evaluation.json, which models/tests/evaluation.rs reads
    python evaluation.py compare RUNTIME [COUNT]    # compares `RUNTIME score` with pycocotools on COUNT (200) random sets

RUNTIME is the program, for instance target/release/runtime. Tests need neither this script nor Python.
tests/benches/score.rs measures the speed of pycocotools.
"""

import contextlib
import copy
import io
import itertools
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
TOLERANCE = 1e-9
# A category id that the ground truth does not have: such detections are ignored.
UNKNOWN = 100_000


def make(seed, images=6, classes=3, objects=4, detections=8, crowd=0.1, side=(8, 140), grid=4, levels=7, found=0.7):
    """Ground truth and results. Coordinates are multiples of `grid`, so that some IoUs are equal or exactly at a threshold;
    scores have `levels` distinct values; a fraction `found` of detections is near an object. Ids have gaps and no order."""
    rng = random.Random(seed)
    number = lambda low, high: rng.randrange(low, high, grid) if grid else round(rng.uniform(low, high), 2)
    image_ids = rng.sample(range(0, 10 * images), images)
    class_ids = rng.sample(range(0, 10 * classes), classes)
    truth = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 400} for i in image_ids],
        "categories": [{"id": i, "name": f"class {i}"} for i in class_ids],
        "annotations": [],
    }
    # The last class has no objects. The first image has neither objects nor detections.
    for _ in range(objects * images):
        width, height = number(*side), number(*side)
        truth["annotations"].append({
            "id": len(truth["annotations"]) + 1,
            "image_id": rng.choice(image_ids[1:]),
            "category_id": rng.choice(class_ids[:-1]),
            "bbox": [number(0, 260), number(0, 260), width, height],
            # Like the area of a mask: smaller than the box, and sometimes exactly at the limit of a size range.
            "area": rng.choice([width * height, width * height, round(width * height * rng.uniform(0.4, 1), 1), 1024, 9216]),
            "iscrowd": int(rng.random() < crowd),
        })
    results = []
    for _ in range(detections * images):
        if truth["annotations"] and rng.random() < found:
            near = rng.choice(truth["annotations"])
            image, category = near["image_id"], near["category_id"]
            bbox = [max(0, v + rng.choice([-1, 0, 0, 0, 1]) * (grid or rng.uniform(0, 8))) for v in near["bbox"]]
        else:
            image, category = rng.choice(image_ids[1:]), rng.choice(class_ids + [UNKNOWN])
            bbox = [number(0, 260), number(0, 260), number(*side), number(*side)]
        score = rng.randrange(1, levels) / levels if levels else rng.random()
        results.append({"image_id": image, "category_id": category, "bbox": bbox, "score": score})
    return truth, results


def evaluate(truth, results):
    """The twelve summary metrics of pycocotools, and metrics and curves per class."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes([dict(result) for result in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = [of_class(evaluation, k) for k in range(len(evaluation.params.catIds))]
    return dict(zip(KEYS, map(float, evaluation.stats))), per_class


def of_class(evaluation, k):
    mean = lambda numbers: float(numbers[numbers > -1].mean()) if (numbers > -1).any() else -1.0
    # [threshold, recall], all sizes, 100 detections
    precision, scores = (evaluation.eval[key][:, :, k, 0, 2] for key in ("precision", "scores"))
    by_size = evaluation.eval["precision"][:, :, k, :, 2]
    # Within each class, the entries for all sizes come first.
    params = evaluation.params
    start = k * len(params.areaRng) * len(params.imgIds)
    images = [image for image in evaluation.evalImgs[start : start + len(params.imgIds)] if image]
    found = {
        "id": int(params.catIds[k]),
        "objects": int(sum((image["gtIgnore"] == 0).sum() for image in images)),
        "detections": sum(len(image["dtIds"]) for image in images),
        "AP": mean(precision),
        "AP50": mean(precision[0]),
        "AP75": mean(precision[5]),
        "APs": mean(by_size[:, :, 1]),
        "APm": mean(by_size[:, :, 2]),
        "APl": mean(by_size[:, :, 3]),
        "AR100": mean(evaluation.eval["recall"][:, k, 0, 2]),
    }
    if precision.max() > -1:
        curve = lambda threshold: {"precision": runs(precision[threshold]), "score": runs(scores[threshold])}
        found["curves"] = {"precision": runs(precision.mean(axis=0)), "iou50": curve(0), "iou75": curve(5)}
    return found


def runs(numbers):
    """Run-length encoding of a curve: each value with its number of repetitions."""
    return [[number, len(list(group))] for number, group in itertools.groupby(map(float, numbers))]


def ours(runtime, truth, results):
    """The same as `evaluate`, from `runtime score`."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("truth.json", "results.json")]
        for path, content in zip(paths, (truth, results)):
            path.write_text(json.dumps(content))
        command = [runtime, "score", "--truth", paths[0], "--detections", paths[1], "--json", "-"]
        report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    curves = {of_class["id"]: of_class for of_class in report["curves"]}
    for of_class in report["classes"]:
        if of_class["id"] in curves:
            of_class["curves"] = run_length_encoded(curves[of_class["id"]])
    return {key: report[key] for key in KEYS}, report["classes"]


def run_length_encoded(curves):
    """Curves in the encoding of `of_class`."""
    curve = lambda key: {name: runs(numbers) for name, numbers in curves[key].items()}
    return {"precision": runs(curves["precision"]), "iou50": curve("iou50"), "iou75": curve("iou75")}


def difference(found, expected):
    """The maximum difference between corresponding numbers of two nested structures."""
    match expected:
        case dict():
            return max((difference(found[key], value) for key, value in expected.items()), default=0)
        case list() if len(found) == len(expected):
            return max(map(difference, found, expected), default=0)
        case int() | float():
            return abs(found - expected)
    return float("inf")


def write():
    cases = {
        "ties in score and overlap": dict(seed=1, levels=3, grid=8),
        "crowds": dict(seed=2, crowd=0.5, images=4),
        "areas": dict(seed=3, side=(8, 240), crowd=0.0, objects=6, grid=0, levels=0),
        "classes without objects": dict(seed=4, classes=12, images=3),
        "more than a hundred detections": dict(seed=5, images=2, classes=2, objects=6, detections=90, found=0.8),
        "no object at all": dict(seed=6, objects=0, images=2, detections=3),
    }
    lines = []
    for name, options in cases.items():
        truth, results = make(**options)
        summary, per_class = evaluate(truth, results)
        case = dict(name=name, truth=truth, results=results, summary=summary, per_class=per_class)
        lines.append(json.dumps(case, separators=(",", ":")))
    Path(__file__).with_suffix(".json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def compare(runtime, count):
    max_difference = 0.0
    for seed in range(count):
        rng = random.Random(seed)
        options = dict(
            images=rng.randint(2, 25), classes=rng.randint(2, 8), objects=rng.randint(0, 12),
            detections=rng.choice([1, 5, 30, 150]), crowd=rng.choice([0, 0.1, 0.5]), side=rng.choice([(4, 40), (8, 240)]),
            grid=rng.choice([0, 1, 2, 4]), levels=rng.choice([0, 2, 5, 50]), found=rng.choice([0, 0.5, 1]),
        )
        truth, results = make(seed, **options)
        expected = evaluate(truth, results)
        found = ours(runtime, truth, results)
        case_difference = difference(list(found), list(expected))
        if not case_difference <= TOLERANCE:
            sys.exit(f"seed {seed} {options} differs by {case_difference}:\n{found}\n{expected}")
        max_difference = max(max_difference, case_difference)
    print(f"{count} sets agree, maximum difference {max_difference:.1e}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write"]:
            write()
        case ["compare", runtime, *count]:
            compare(runtime, int(*count) if count else 200)
        case _:
            sys.exit(__doc__)
