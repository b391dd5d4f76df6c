"""COCO evaluation in other projects' code, from the files to the metrics.

Started by tests/benches/score.rs as `python evaluation.py`, which lists the peers that are installed, and as
`python evaluation.py PEER TRUTH RESULTS`, which prints one line of JSON: the seconds without the start of Python, and the twelve
metrics.
"""
import contextlib
import importlib
import importlib.util
import io
import json
import sys
import time

PEERS = {
    "ultrafast_pycocotools": ("ultrafast_pycocotools.coco.COCO", "ultrafast_pycocotools.cocoeval.COCOeval"),
    "hotcoco": ("hotcoco.COCO", "hotcoco.COCOeval"),
    "faster_coco_eval": ("faster_coco_eval.COCO", "faster_coco_eval.COCOeval_faster"),
    "pycocotools": ("pycocotools.coco.COCO", "pycocotools.cocoeval.COCOeval"),
}
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def load(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def main(name, truth, results):
    COCO, COCOeval = map(load, PEERS[name])
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(truth)
        load_results = truth.load_res if name == "hotcoco" else truth.loadRes
        evaluation = COCOeval(truth, load_results(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, **dict(zip(KEYS, map(float, evaluation.stats)))}))


if len(sys.argv) == 1:
    print(*(name for name in PEERS if importlib.util.find_spec(name)), sep="\n")
else:
    main(*sys.argv[1:])
