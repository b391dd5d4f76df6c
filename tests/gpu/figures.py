#!/usr/bin/env python3
"""What check.sh and bench.sh report of the JSON that our programs and peer.py write, as one line of JSON; the exit code is 1
when it is not as it should be. All names of our JSON that the scripts depend on stand here and in compare.py.

usage: figures.py doctor|first-steps|fit|eval|train|detect|beside|shapes FILE.. [NUMBER]
"""
import json
import sys


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file] if path.endswith(".jsonl") else json.load(file)


def check(fine, reason):
    if not fine:
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)


def doctor(path, provider):
    """The provider must work."""
    outcomes = {each["provider"].split(":")[0]: each["outcome"] for each in read(path)["providers"]}
    outcome = outcomes.get(provider, {"Err": "is not known"})
    check("Ok" in outcome, f"{provider} does not start: {outcome.get('Err')}")
    return {"start_ms": round(outcome["Ok"], 1)}


def steps(path):
    """Losses and gradient norm of each step."""
    return [[line[key] for key in ("classification_loss", "box_loss", "gradient_norm")] for line in read(path) if "gradient_norm" in line]


def first_steps(path, reference):
    """The first step must agree to 0.1 %, the second, with other weights, to 1 %."""
    relative = [max(abs(a - b) / abs(b) for a, b in zip(*pair)) for pair in zip(steps(path), steps(reference))]
    check(len(relative) >= 2 and relative[0] <= 1e-3 and relative[1] <= 1e-2, f"steps differ by {relative}")
    return {"relative_differences": relative}


def fit(path, min_ap50):
    """The loss must fall, and the detector must be worth something."""
    losses = [classification_loss + box_loss for classification_loss, box_loss, _ in steps(path)]
    few = max(len(losses) // 4, 1)
    first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
    epoch = [line for line in read(path) if "validation" in line][-1]
    ap50 = epoch["validation"]["AP50"]
    found = {"steps": len(losses), "loss": [first, last], "images_per_second": epoch["images_per_second"], "AP50": ap50}
    check(last < first and ap50 >= float(min_ap50), f"it has not learned: {found}")
    return found


def evaluations(*paths):
    """All must find the same average precision, to 0.01."""
    found = {path.removesuffix(".json"): read(path)["AP"] for path in paths}
    check(max(found.values()) - min(found.values()) <= 0.01, f"AP differs: {found}")
    return found


def train(path):
    """Milliseconds of a step, and of its stages as they are named."""
    found = read(path)
    stages = {stage: round(1e3 * seconds, 2) for stage, seconds in found["seconds"].items()}
    step = 1e3 * found["batch_size"] / found["images_per_second"]
    return {"input": found["input"], "batch": found["batch_size"], "ms_per_step": round(step, 2), **stages}


def detect(path):
    """Images per second of the whole, and milliseconds of the network per image, by batch."""
    found = read(path)
    network = {}
    for each in found["throughput"]:
        speed = each["images_per_second"]
        network[each["batch"]] = {"images_per_second": round(speed, 1), "network_ms": round(1e3 * each["in_network"] / speed, 3)}
    start = {"session_ms": found["start"]["session_ms"], "first_run_ms": found["start"]["first"]["run"]}
    return {"input": found["setup"]["input"], **start, "detections": found["stages"]["detections"], "by_batch": network}


def beside(peer, *ours):
    """Our time over the peer's: below 1 we are faster."""
    peer, ratios = read(peer), {}
    for path in ours:
        if "seconds" in read(path):
            ratios[path] = round(train(path)["ms_per_step"] / peer["ms_per_step"], 3)
        else:
            times = {str(batch): each["network_ms"] for batch, each in detect(path)["by_batch"].items()}
            ratios[path] = {batch: round(times[batch] / ms, 3) for batch, ms in peer["ms_per_image"].items() if batch in times}
    return {"peer": peer, "our_time_over_the_peers": ratios}


def shapes(alternating, grouped, per_group):
    """What a change of the input's shape costs: of `per_group` images, grouped ones have one change, alternating ones all."""
    means = [read(path)["stages"]["stages"]["run"]["mean"] for path in (alternating, grouped)]
    change = (means[0] - means[1]) / (1 - 1 / int(per_group))
    return {"alternating_ms": means[0], "grouped_ms": means[1], "ms_per_change": round(change, 2)}


commands = {"doctor": doctor, "first-steps": first_steps, "fit": fit, "eval": evaluations, "train": train, "detect": detect,
            "beside": beside, "shapes": shapes}
print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
