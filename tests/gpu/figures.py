#!/usr/bin/env python3
"""Summarizes the JSON of our programs and of peer.py for check.sh and bench.sh as one line of JSON. The exit code is 1 if a
check fails. Only this file and compare.py depend on JSON keys of our programs.

usage: figures.py doctor|first-steps|fit|eval|train|detect|ratios|shapes FILE.. [NUMBER]
"""
import json
import sys


def read(path):
    with open(path) as file:
        return [json.loads(line) for line in file] if path.endswith(".jsonl") else json.load(file)


def check(passed, reason):
    if not passed:
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(1)


def doctor(path, provider):
    """Checks that the provider works."""
    outcomes = {each["provider"].split(":")[0]: each for each in read(path)["providers"]}
    outcome = outcomes.get(provider, {"error": "`runtime doctor` does not list it"})
    check("smoke_test_ms" in outcome, f"`{provider}` does not work: {outcome.get('error')}")
    return {"start_ms": round(outcome["smoke_test_ms"], 1)}


def steps(path):
    """Losses and gradient norm of each step."""
    return [[line[key] for key in ("classification_loss", "box_loss", "gradient_norm")] for line in read(path) if "gradient_norm" in line]


def first_steps(path, reference):
    """Checks that the first step agrees within 0.1 % and the second, after one update, within 1 %."""
    relative = [max(abs(a - b) / abs(b) for a, b in zip(*pair)) for pair in zip(steps(path), steps(reference))]
    check(len(relative) >= 2 and relative[0] <= 1e-3 and relative[1] <= 1e-2, f"relative differences of the steps: {relative}")
    return {"relative_differences": relative}


def fit(path, min_ap50):
    """Checks that the loss decreases and that AP50 is at least `min_ap50`."""
    losses = [classification_loss + box_loss for classification_loss, box_loss, _ in steps(path)]
    quarter = max(len(losses) // 4, 1)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    epoch = [line for line in read(path) if "validation" in line][-1]
    ap50 = epoch["validation"]["AP50"]
    found = {"steps": len(losses), "loss": [first, last], "images_per_second": epoch["images_per_second"], "AP50": ap50}
    check(last < first and ap50 >= float(min_ap50), f"the loss did not decrease or AP50 is below {min_ap50}: {found}")
    return found


def evaluations(*paths):
    """Checks that the AP of all files agrees within 0.01."""
    found = {path.removesuffix(".json"): read(path)["AP"] for path in paths}
    check(max(found.values()) - min(found.values()) <= 0.01, f"AP differs: {found}")
    return found


def train(path):
    """Milliseconds per training step and of each stage."""
    found = read(path)
    stages = {stage: round(1e3 * seconds, 2) for stage, seconds in found["seconds"].items()}
    step = 1e3 * found["batch_size"] / found["images_per_second"]
    return {"input": found["input"], "batch": found["batch_size"], "ms_per_step": round(step, 2), **stages}


def detect(path):
    """Images per second, and milliseconds per image in the network, by batch size."""
    found = read(path)
    network = {}
    for each in found["throughput"]:
        speed = each["images_per_second"]
        network[each["batch"]] = {"images_per_second": round(speed, 1), "network_ms": round(1e3 * each["network_fraction"] / speed, 3)}
    start = {"session_ms": found["start"]["session_ms"], "first_run_ms": found["start"]["first"]["network"]}
    return {"input": found["setup"]["input"], **start, "detections": found["stages"]["detections_per_image"], "by_batch": network}


def ratios(peer, *ours):
    """Our time divided by the peer's; below 1 we are faster."""
    peer, found = read(peer), {}
    for path in ours:
        if "seconds" in read(path):
            found[path] = round(train(path)["ms_per_step"] / peer["ms_per_step"], 3)
        else:
            times = {str(batch): each["network_ms"] for batch, each in detect(path)["by_batch"].items()}
            found[path] = {batch: round(times[batch] / ms, 3) for batch, ms in peer["ms_per_image"].items() if batch in times}
    return {"peer": peer, "time_relative_to_peer": found}


def shapes(alternating, grouped, per_group):
    """Cost of a change of the input shape, which one of `per_group` images causes if grouped, and all if alternating."""
    means = [read(path)["stages"]["network"]["mean"] for path in (alternating, grouped)]
    change = (means[0] - means[1]) / (1 - 1 / int(per_group))
    return {"alternating_ms": means[0], "grouped_ms": means[1], "ms_per_change": round(change, 2)}


commands = {"doctor": doctor, "first-steps": first_steps, "fit": fit, "eval": evaluations, "train": train, "detect": detect,
            "ratios": ratios, "shapes": shapes}
print(json.dumps(commands[sys.argv[1]](*sys.argv[2:])))
