"""Times COCO evaluation (matching and accumulation, without reading files) in pycocotools and faster-coco-eval.

Started by models/benches/evaluation.rs as `python evaluation.py`, which lists the peers that are installed, and as
`python evaluation.py PEER TRUTH RESULTS`, which runs one evaluation for each line on stdin and prints one line of JSON: the
peer's name, the seconds of the evaluation and the twelve metrics.
"""
import contextlib
import importlib
import importlib.util
import io
import json
import sys
import time

PEERS = {
    "pycocotools": ("pycocotools.coco.COCO", "pycocotools.cocoeval.COCOeval"),
    "faster_coco_eval": ("faster_coco_eval.COCO", "faster_coco_eval.COCOeval_faster"),
}
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def load(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def main(name, truth, results):
    COCO, COCOeval = map(load, PEERS[name])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(truth)
        results = truth.loadRes(results)
    for _ in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(truth, results, "bbox")
            start = time.perf_counter()
            evaluation.evaluate()
            evaluation.accumulate()
            seconds = time.perf_counter() - start
            evaluation.summarize()
        numbers = dict(zip(KEYS, map(float, evaluation.stats)))
        print(json.dumps({"name": name, "seconds": seconds, **numbers}), flush=True)


if len(sys.argv) == 1:
    print(*(name for name in PEERS if importlib.util.find_spec(name)), sep="\n")
else:
    main(*sys.argv[1:])
