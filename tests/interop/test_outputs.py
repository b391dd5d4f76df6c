"""Other tools read what `detect` writes, and `trainer check` what they write: the same boxes."""

import json
import os
import shutil

import numpy as np
import pandas
import pytest
import supervision
import yaml
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from conftest import ROOT

# YOLO's fractions have six decimals: half of the last one, of the center and of half a side, in images of 192 pixels;
# and the rounding of float32.
YOLO_PIXELS = 192 * (0.5e-6 + 0.25e-6) + 1e-4

# supervision rounds YOLO's fractions to five decimals and VOC's edges to pixels, which changed AP by 0.004 and 0.010.
AP_OF_ROUNDED_BOXES = 0.02

# The order of the twelve numbers in pycocotools' summary.
METRICS = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()


def boxes(image):
    """Class index by name, and corners, of the detections of an image in JSON, sorted."""
    return sorted((found["label"], *found["box"]) for found in image["detections"])


def assert_same(found, expected, tolerance):
    """Compares lists of (class name, x1, y1, x2, y2) after sorting."""
    found, expected = sorted(found), sorted(expected)
    assert [name for name, *_ in found] == [name for name, *_ in expected]
    # Boxes of nearly the same corner may change places.
    distances = [
        min(np.abs(np.subtract(box[1:], other[1:])).max() for other in expected if other[0] == box[0]) for box in found
    ]
    assert max(distances, default=0) <= tolerance


@pytest.fixture
def labels(runtime, folder, detections):
    """The folder set/: images/, and labels/ as `detect --yolo` writes them."""
    shutil.copytree("photos", "set/images")
    runtime("detect", "set/images", "--yolo", "set/labels")
    return folder / "set/labels"


@pytest.fixture(scope="session")
def ultralytics(tmp_path_factory):
    """Ultralytics, kept from the network: it asks whether there is one, and downloads a font."""
    import matplotlib

    settings = tmp_path_factory.mktemp("ultralytics")
    font = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    os.environ.update(YOLO_OFFLINE="true", YOLO_CONFIG_DIR=str(settings), YOLO_AUTOINSTALL="false")
    import ultralytics.data.dataset
    from ultralytics.utils import USER_CONFIG_DIR

    shutil.copy(font, USER_CONFIG_DIR / "Arial.ttf")
    return ultralytics


def test_json_and_csv_have_the_same_boxes_for_supervision_and_pandas(runtime, detections):
    runtime("detect", "photos", "--csv", "detections.csv")
    table = pandas.read_csv("detections.csv")
    assert len(table) == sum(len(image["detections"]) for image in detections)
    for image in detections:
        rows = table[table.file == image["file"]]
        found = image["detections"]
        assert rows.label.tolist() == [one["label"] for one in found]
        assert rows.category_id.tolist() == [one["category_id"] for one in found]
        assert rows.score.tolist() == [one["score"] for one in found]
        assert rows[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == [one["box"] for one in found]
        detected = supervision.Detections(
            xyxy=rows[["x1", "y1", "x2", "y2"]].to_numpy(),
            confidence=rows.score.to_numpy(),
            class_id=rows.category_id.to_numpy(),
        )
        # Our NMS has left nothing to its own.
        assert len(detected.with_nms(threshold=0.5 + 1e-4)) == len(found)


def test_supervision_reads_yolo_labels(labels, detections):
    dataset = supervision.DetectionDataset.from_yolo(
        images_directory_path=str(labels.parent / "images"),
        annotations_directory_path=str(labels),
        data_yaml_path=str(labels / "data.yaml"),
    )
    read = {os.path.basename(path): found for path, _, found in dataset}
    assert len(read) == len(detections)
    for image in detections:
        found = read[os.path.basename(image["file"])]
        named = [(dataset.classes[index], *box) for index, box in zip(found.class_id, found.xyxy)]
        assert_same(named, boxes(image), YOLO_PIXELS)


def test_ultralytics_accepts_yolo_labels_and_refuses_those_with_scores(runtime, ultralytics, labels, detections):
    data = ultralytics.data.utils.check_det_dataset(str(labels / "data.yaml"), autodownload=False)
    read = {
        os.path.basename(one["im_file"]): one
        for one in ultralytics.data.dataset.YOLODataset(data["train"], data=data).labels
    }
    assert len(read) == len(detections)
    for image in detections:
        one = read[os.path.basename(image["file"])]
        corners = ultralytics.utils.ops.xywh2xyxy(one["bboxes"]) * np.tile([image["width"], image["height"]], 2)
        named = [(data["names"][int(index)], *box) for [index], box in zip(one["cls"], corners)]
        assert_same(named, boxes(image), YOLO_PIXELS)

    runtime("detect", "set/images", "--yolo", "scored", "--yolo-scores")
    for image, expected in [(image, f"scored/{os.path.basename(image['file'])[:-3]}txt") for image in detections]:
        checked = ultralytics.data.utils.verify_image_label(
            (image["file"], expected, "", False, len(data["names"]), 0, 0, False)
        )
        corrupt, message = checked[8:10]
        assert corrupt and "labels require 5 columns, 6 columns detected" in message


def test_pycocotools_reads_coco_results_and_finds_the_ap_of_eval(runtime, detections):
    runtime("detect", "photos", "--coco", "results.json", "--image-ids", "test.json")
    truth = COCO("test.json")
    results = truth.loadRes("results.json")
    names = {image["id"]: image["file_name"] for image in truth.dataset["images"]}
    by_name = {os.path.basename(image["file"]): image for image in detections}
    for id, name in names.items():
        found = results.loadAnns(results.getAnnIds(imgIds=id))
        corners = [np.add(one["bbox"], [0, 0, *one["bbox"][:2]]) for one in found]
        named = [(truth.cats[one["category_id"]]["name"], *box) for one, box in zip(found, corners)]
        assert_same(named, boxes(by_name[name]), 1e-4)

    evaluation = COCOeval(truth, results, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    expected = dict(zip(METRICS, evaluation.stats, strict=True))
    assert expected["AP"] > 0.05
    detected = json.loads(runtime("eval", "--data", "test.json", "--images", "photos", "--json", "-"))
    scored = json.loads(runtime("score", "--truth", "test.json", "--detections", "results.json", "--json", "-"))
    for metric in METRICS:
        number = pytest.approx(expected[metric], abs=1e-9)
        assert detected[metric] == number and scored[metric] == number, metric


def yolo(dataset):
    dataset.as_yolo("written/images", "written/labels", "written/data.yaml")
    return {"annotations": "written/labels", "images": "written/images"}


def coco(dataset):
    dataset.as_coco("written", "written/boxes.json")
    return {"annotations": "written/boxes.json"}


def voc(dataset):
    dataset.as_pascal_voc("written/images", "written/boxes")
    return {"annotations": "written/boxes", "images": "written/images"}


@pytest.mark.parametrize("write", [yolo, coco, voc])
def test_data_sets_that_supervision_writes_are_read(runtime, trainer, data, write):
    dataset = supervision.DetectionDataset.from_coco("photos", "test.json")
    assert_read_like_the_original(runtime, trainer, data, write(dataset))


def test_labels_that_ultralytics_writes_are_read(runtime, trainer, data, ultralytics):
    from ultralytics.data.converter import convert_coco

    os.mkdir("json")
    shutil.copy("test.json", "json/instances_test.json")
    convert_coco("json", "written", cls91to80=False)
    names = {category["id"] - 1: category["name"] for category in json.load(open("test.json"))["categories"]}
    with open("written/data.yaml", "w") as file:
        yaml.safe_dump({"path": ".", "train": "images/test", "val": "images/test", "names": names}, file)
    # Images without boxes have no label file, and are found in the folder that belongs to these labels alone.
    shutil.copytree("photos", "written/images/test")
    assert_read_like_the_original(runtime, trainer, data, {"annotations": "written/labels/test"})


def assert_read_like_the_original(runtime, trainer, data, written):
    """Compares a data set that a tool has written with test.json, from which it was read."""

    def check(source):
        keys = [f"data.train.{key}={value}" for key, value in ({"images": "null"} | source).items()]
        keys += [f"data.validation.annotations={data}/val.json", f"data.validation.images={data}/val"]
        sets = [argument for key in keys for argument in ["--set", key]]
        config = ROOT / "trainer/configs/shapes.yaml"
        return json.loads(trainer("check", "--config", config, "--data", ".", *sets, "--json", "-"))["train"]

    def evaluate(source):
        images = ["--images", source["images"]] if "images" in source else []
        return json.loads(runtime("eval", "--data", source["annotations"], *images, "--json", "-"))

    original = {"annotations": "test.json", "images": "photos"}
    expected, found = check(original), check(written)
    counts = lambda survey: {
        one["name"]: (one["images"], one["all"]["boxes"]) for one in survey["classes"] if one["images"]
    }
    assert counts(found) == counts(expected)
    for key in ["images", "boxes", "images_without_boxes", "image_sizes"]:
        assert found[key] == expected[key], key
    assert not found["refused"] and not found["problems"] and not found["bad_images"]
    assert evaluate(written)["AP"] == pytest.approx(evaluate(original)["AP"], abs=AP_OF_ROUNDED_BOXES)
