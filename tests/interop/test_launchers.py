"""What starts processes starts training: torchrun, mpirun, srun's variables, two machines. All reach the same weights,
also when processes are killed and torchrun restarts them."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from conftest import call

# Seconds in which the processes of a test end, or fail.
LIMIT = 120

# How many processes are killed, each in a run of its own.
KILLS = int(os.environ.get("KILLS", 2))

# Nine steps of two processes, three validations and as many saves or more. The statistics of the batch norms are part of
# what is saved and restored.
CONFIG = """
data:
  train: {annotations: shapes/train.json, images: shapes/train}
  validation: {annotations: shapes/val.json, images: shapes/val}
optimizer: {kind: sgd, learning_rate: 0.01}
run: {epochs: 3, batch_size: 2, workers: 1, save_every_minutes: 0.02}
model:
  backbone: {depth: 18, norm: {kind: batch}}
  pyramid: {width: 16}
  heads: {width: 16, depth: 1}
  preprocessing: {shorter_side: 64, longer_side: 64}
"""

# Two machines, which are network namespaces: names and addresses.
MACHINES = {"interop-0": "10.211.0.1", "interop-1": "10.211.0.2"}


@pytest.fixture(scope="session")
def project(programs, tmp_path_factory):
    """A folder with a small data set and a configuration that trains on it in seconds."""
    folder = tmp_path_factory.mktemp("project")
    size = ["--width", 64, "--height", 64, "--train", 12, "--val", 4, "--test", 0]
    call(programs / "trainer", "synth", "--out", folder / "shapes", *size)
    (folder / "retinanet.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def fit(programs):
    """The command that every process runs."""
    return [str(programs / "trainer"), "fit", "--resume", "--out", "run", "--group-timeout", "60"]


@contextmanager
def running(command, folder, **env):
    """A process in `folder`. It is ended if the block does not wait for it."""
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait(process):
    """What a process prints, which must succeed."""
    said, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, said
    return said


def copy(project, to):
    """A project of its own, without runs."""
    shutil.copytree(project, to, ignore=shutil.ignore_patterns("run", "runs"))
    return to


def trained(folder):
    return (folder / "run/last.safetensors").read_bytes()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(*options):
    program = str(Path(sys.executable).with_name("torchrun"))
    return [program, "--no-python", "--nproc-per-node", "2", "--master-port", free_port(), *options]


def worker(torchrun, rank):
    """The process of a rank, once it runs."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for child in psutil.Process(torchrun.pid).children():
            if child.environ().get("RANK") == str(rank):
                return child
        time.sleep(0.02)
    raise AssertionError(f"torchrun starts no rank {rank}")


@pytest.fixture(scope="session")
def undisturbed(project, fit):
    """The weights that two processes train under torchrun, and the seconds that these take."""
    with running([*torchrun(), *fit], project) as process:
        worker(process, 0)
        start = time.monotonic()
        wait(process)
    return trained(project), time.monotonic() - start


def one_command(launcher):
    """The command and the variables that start both processes."""
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {
        "Open MPI": (["mpirun.openmpi", "-n", "2", "--oversubscribe"], {**as_root, "MASTER_PORT": free_port()}),
        "MPICH": (["mpirun.mpich", "-n", "2"], {"MASTER_PORT": free_port()}),
    }[launcher]


@pytest.mark.parametrize("launcher", ["Open MPI", "MPICH"])
def test_mpirun_trains(project, fit, undisturbed, tmp_path, launcher):
    folder = copy(project, tmp_path / "project")
    command, env = one_command(launcher)
    with running([*command, *fit], folder, **env) as process:
        assert "2 processes" in wait(process)
    assert trained(folder) == undisturbed[0]
    # The same command again finds that the run is complete.
    with running([*command, *fit], folder, **env) as process:
        assert "the run has finished its 3 epochs" in wait(process)


def both(folder, places, command):
    """Runs two processes with these variables."""
    with running(command(0), folder, **places[0]) as first, running(command(1), folder, **places[1]) as second:
        wait(first)
        wait(second)


def test_slurms_variables_train(project, fit, undisturbed, tmp_path):
    folder = copy(project, tmp_path / "project")
    # The port follows from the job's id.
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "node[1-1]",
        "SLURM_NODEID": "0",
    }
    places = [{**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    both(folder, places, lambda rank: fit)
    assert trained(folder) == undisturbed[0]


@pytest.fixture
def machines():
    """Two network namespaces with a link between them, which root may make."""
    ip = lambda *arguments: call("ip", *arguments)
    names = list(MACHINES)
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address in MACHINES.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ["lo", "eth0"]:
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_two_machines_train(project, fit, undisturbed, machines, tmp_path):
    folder = copy(project, tmp_path / "project")
    address = {"MASTER_ADDR": MACHINES[machines[0]], "MASTER_PORT": "29500", "WORLD_SIZE": "2"}
    places = [{**address, "RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} for rank in range(2)]
    both(folder, places, lambda rank: ["ip", "netns", "exec", machines[rank], *fit])
    assert trained(folder) == undisturbed[0]


@pytest.mark.parametrize("kill", range(KILLS))
def test_killed_processes_are_restarted_to_the_same_weights(project, fit, undisturbed, tmp_path, kill):
    weights, seconds = undisturbed
    rank = kill % 2
    was_running = False
    while not was_running:
        moment = random.uniform(0, seconds)
        folder = copy(project, tmp_path / f"{moment}")
        with running([*torchrun("--max-restarts", "1"), *fit], folder) as process:
            victim = worker(process, rank)
            time.sleep(moment)
            # Its process id is not reused before torchrun has waited for it.
            was_running = victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE
            if was_running:
                victim.kill()
            said = wait(process)
    assert "exitcode: -9" in said, said
    assert trained(folder) == weights, f"rank {rank}, killed after {moment:.2f} s"
