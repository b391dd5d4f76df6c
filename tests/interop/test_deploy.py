"""The files in runtime/deploy: what can be checked of them without a cluster, a registry or systemd."""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
import yaml

from conftest import ROOT, call
from server import Server

DEPLOY = ROOT / "runtime/deploy"

KUBERNETES = "1.37"


def manifests():
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}


@pytest.fixture(scope="module")
def flags(programs):
    """The environment variables of the flags of `serve`, and their defaults as far as they have one."""
    text = call(programs / "runtime", "serve", "--help")
    parts = re.split(r"\n\s+(?:-\w, )?(?=--\w)", text)[1:]
    names = ["DETECTOR_" + re.match(r"--([\w-]+)", part)[1].replace("-", "_").upper() for part in parts]
    defaults = [re.search(r"\[default: ([^\]]*)\]", part) for part in parts]
    return {name: default and default[1] for name, default in zip(names, defaults)}


def test_the_manifests_are_valid():
    documents = manifests()
    assert documents.keys() == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    for document in documents.values():
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    labels = documents["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert documents["Service"]["spec"]["selector"] == labels
    assert documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert documents["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == documents["Deployment"]["metadata"]["name"]


def test_pods_meet_the_restricted_security_standard():
    """<https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>, and more."""
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    context = container["securityContext"]
    assert context == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}


def test_probes_metrics_and_variables_are_those_of_the_server(programs, model, flags):
    documents = manifests()
    template = documents["Deployment"]["spec"]["template"]
    [container] = template["spec"]["containers"]
    with Server(programs, "--model", model) as server:
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
            assert server.get(container[probe]["httpGet"]["path"])[0] == 200, probe
        assert server.get(template["metadata"]["annotations"]["prometheus.io/path"])[0] == 200
        metrics = server.metrics()
    for metric in documents["HorizontalPodAutoscaler"]["spec"]["metrics"]:
        assert metric["pods"]["metric"]["name"] in metrics
    named = {variable["name"] for variable in container["env"]}
    for file in ["Containerfile", "detector.service", "kubernetes.yaml"]:
        named |= set(re.findall(r"DETECTOR_[A-Z_]+(?==)", (DEPLOY / file).read_text()))
    assert named and named <= flags.keys(), named - flags.keys()


def test_there_is_time_to_finish(flags):
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    environment = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    drain = int(environment["DETECTOR_DRAIN_DELAY"])
    grace = int(flags["DETECTOR_GRACE"])
    assert pod["terminationGracePeriodSeconds"] > drain + grace
    unit = (DEPLOY / "detector.service").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", unit)[1]) > grace


def test_systemd_takes_the_unit_and_finds_little_exposed(programs, tmp_path):
    text = (DEPLOY / "detector.service").read_text()
    unit = tmp_path / "detector.service"
    unit.write_text(text.replace("/opt/detector/runtime", str(programs / "runtime")))
    assert text != unit.read_text()
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    exposure = subprocess.check_output(["systemd-analyze", "security", "--offline=true", unit], text=True)
    assert float(re.search(r"Overall exposure level .*: ([\d.]+)", exposure)[1]) <= 1.5


def test_the_server_needs_no_writable_code(programs, model, data):
    """As with MemoryDenyWriteExecute=yes in the unit."""
    deny = "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", deny, programs / "runtime", "detect", "--model", model, "--json", "-", data / "test"]
    assert len(json.loads(call(*command))) == len(list((data / "test").iterdir()))


def test_the_dashboard_asks_for_metrics_that_exist(programs, model, data):
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(expressions) > 8
    with Server(programs, "--model", model) as server:
        assert server.detect(next((data / "test").iterdir()).read_bytes())[0] == 200
        assert server.detect(b"no image")[0] == 400
        samples = server.metrics()
    names = {sample.split("{")[0] for sample in samples}
    labels = {label for sample in samples for label in re.findall(r"(\w+)=\"", sample)}
    for expression in expressions:
        promql_parser.parse(expression.replace("$__rate_interval", "1m"))
        asked = set(re.findall(r"(\w+)\{", expression))
        assert asked and asked <= names, asked - names
        assert set(re.findall(r"(\w+)=~", expression)) <= labels
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_the_containerfile_is_clean():
    subprocess.run([Path(sys.executable).parent / "hadolint", DEPLOY / "Containerfile"], check=True)


class Containerfile:
    """The last stage of the Containerfile."""

    def __init__(self):
        text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Containerfile").read_text())
        last = text[text.rindex("\nFROM ") + 1 :]
        lines = [line for line in last.splitlines() if line and not line.startswith("#")]
        instructions = [line.split(" ", 1) for line in lines]
        value = lambda name: next(rest for instruction, rest in instructions if instruction == name)
        self.base = value("FROM")
        self.copies = [rest.split()[1:] for instruction, rest in instructions if instruction == "COPY"]
        self.environment = dict(item.split("=", 1) for item in shlex.split(value("ENV")))
        self.user = value("USER")
        self.port = int(value("EXPOSE"))
        self.entrypoint = json.loads(value("ENTRYPOINT"))
        self.health = json.loads(value("HEALTHCHECK").split("CMD ")[1])


# Debian packages in gcr.io/distroless/cc-debian12, of which programs may load libraries.
DISTROLESS_CC = {"libc6", "libgcc-s1", "libstdc++6", "libgomp1"}


def libraries(file):
    """Shared libraries that a file loads, as ldd finds them."""
    return {Path(path) for path in re.findall(r"(/\S+\.so\S*)", subprocess.check_output(["ldd", file], text=True))}


def build_root(root, programs, container):
    """Lays out the image's root. The base image is stood in for by the libraries of its packages, from this machine."""
    sources = {"/runtime": programs / "runtime", "/libonnxruntime.so": ROOT / ".deps/onnxruntime/lib/libonnxruntime.so"}
    needed = set()
    for source, target in container.copies:
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sources[source], place)
        needed |= libraries(place)
    for library in needed:
        owner = subprocess.run(["dpkg", "--search", library.resolve()], capture_output=True, text=True).stdout
        owner = owner or subprocess.run(["dpkg", "--search", f"*/{library.resolve().name}"], capture_output=True, text=True).stdout
        assert owner.split(":")[0] in DISTROLESS_CC, f"the base image has no {library}: {owner}"
        place = root / str(library).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, place)
    for folder in ["models", "proc", "tmp"]:
        (root / folder).mkdir()


def test_the_image_runs_read_only_and_without_rights(programs, model, data, tmp_path):
    assert os.geteuid() == 0, "a root file system is entered as root: start this test as root"
    container, root = Containerfile(), tmp_path / "root"
    assert container.base.startswith("gcr.io/distroless/cc-debian12")
    build_root(root, programs, container)
    version = root / "models/shapes/1"
    version.mkdir(parents=True)
    shutil.copy(model, version / "model.onnx")
    # As `podman run --read-only`: a root that is mounted read-only, in namespaces of its own, by the image's user.
    mounts = f"mount --bind -o ro {root} {root} && mount -o remount,bind,ro {root} && mount -t proc proc {root}/proc"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # All tests share the network of this machine, so the port is a free one.
    environment = {**container.environment, "DETECTOR_LISTEN": f"127.0.0.1:{port}"}
    assert container.environment["DETECTOR_LISTEN"] == f"0.0.0.0:{container.port}"

    def inside(command):
        chroot = ["chroot", f"--userspec={container.user}", root, *command]
        script = f"{mounts} && exec {shlex.join(map(str, chroot))}"
        return ["unshare", "--mount", "--pid", "--fork", "sh", "-c", script]

    process = subprocess.Popen(inside(container.entrypoint), env=environment, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 60
        while subprocess.run(inside(container.health), env=environment, capture_output=True).returncode:
            assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
            time.sleep(0.2)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/detect", next((data / "test").iterdir()).read_bytes())
        response = connection.getresponse()
        assert response.status == 200 and "detections" in json.loads(response.read())
        [server] = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        user = re.search(r"Uid:\s+(\d+)", Path(f"/proc/{server}/status").read_text())[1]
        assert user == container.user.split(":")[0]
        os.kill(int(server), signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        # The server does not end with `unshare`, as it has changed its user.
        if process.poll() is None:
            subprocess.run(["pkill", "--signal", "KILL", "--parent", str(process.pid)])
            process.wait()
    # Nothing is there to check.
    assert subprocess.run(inside(container.health), env=environment, capture_output=True).returncode == 1


def test_the_build_sees_all_it_needs(tmp_path):
    """The files that .dockerignore lets through make a workspace that cargo resolves offline."""
    allowed = [line[1:] for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    files = subprocess.check_output(["git", "-C", ROOT, "ls-files", "--", *allowed], text=True).splitlines()
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    # Crates of other platforms need not have been downloaded.
    platform = "--filter-platform=x86_64-unknown-linux-gnu"
    call("cargo", "metadata", "--locked", "--offline", "--format-version=1", platform, cwd=tmp_path)
    # Files that sources include are there too.
    for source in (tmp_path / "models").rglob("*.rs"):
        for name in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', source.read_text()):
            assert (source.parent / name).exists(), f"{source} includes {name}"
