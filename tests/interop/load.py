"""`runtime serve` under load: what a request costs, beside `detect --stdin` and the usual Python service.

    .deps/interop/bin/python tests/interop/load.py MODEL.onnx IMAGES --seconds 60

prints a table. IMAGES is a folder; its images become JPEG files of 640x480. `--programs` is the folder of release programs. The
machine should do nothing else. A closed loop has `--clients` clients, each of which waits for its answer before it sends the
next image; an open loop sends at twice the measured capacity whatever the answers.
"""

import argparse
import asyncio
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from server import Server

ROOT = Path(__file__).resolve().parents[2]


def draw(folder, out, count=50):
    paths = [path for path in sorted(folder.iterdir()) if path.is_file()][:count]
    for number, path in enumerate(paths):
        Image.open(path).convert("RGB").resize((640, 480)).save(out / f"{number:03}.jpg", quality=90)
    return sorted(out.iterdir())


async def answer(reader):
    """The status of a response, whose body is read and dropped."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])


def requests(address, images):
    head = f"POST /detect HTTP/1.1\r\nHost: {address}\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return [(head % len(image)).encode() + image for image in (path.read_bytes() for path in images)]


async def closed_loop(address, bodies, clients, seconds):
    """Status and seconds of each request."""
    host, port = address.split(":")
    end, results = time.monotonic() + seconds, []

    async def client(number):
        reader, writer = await asyncio.open_connection(host, port)
        while (start := time.monotonic()) < end:
            writer.write(bodies[number % len(bodies)])
            results.append((await answer(reader), time.monotonic() - start))
            number += 1
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return results


async def open_loop(address, bodies, rate, seconds):
    """As closed_loop, at a constant rate; a request takes a free connection or a new one."""
    host, port = address.split(":")
    free, results, tasks = [], [], set()

    async def send(number):
        start = time.monotonic()
        try:
            # The server closes connections that are idle for a minute.
            while free and free[-1][0].at_eof():
                free.pop()[1].close()
            reader, writer = free.pop() if free else await asyncio.open_connection(host, port)
            writer.write(bodies[number % len(bodies)])
            status = await answer(reader)
            free.append((reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            status = 0
        results.append((status, time.monotonic() - start))

    start = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(start + number / rate - time.monotonic(), 0))
        task = asyncio.create_task(send(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for _, writer in free:
        writer.close()
    return results


def percentile(values, percent):
    return 1000 * statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else float("nan")


def row(name, results, seconds, cpu=None):
    good = [duration for status, duration in results if status == 200]
    failures = sum(status != 200 for status, _ in results)
    cpu = f"{1000 * cpu / len(good):.2f} ms" if cpu else ""
    print(f"| {name} | {len(good) / seconds:.1f} | {failures} | {percentile(good, 50):.1f} | {percentile(good, 99):.1f} | {cpu} |")
    return len(good) / seconds


def with_stdin(programs, model, images, count):
    """Images per second and CPU seconds per image of `detect --stdin`, its start left out."""

    def run(count):
        names = "".join(f"{images[number % len(images)]}\n" for number in range(count))
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [programs / "runtime", "detect", "--quiet", "--model", model, "--stdin", "--ndjson", "-"]
        subprocess.run(command, input=names, text=True, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.monotonic() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    short, long = run(len(images)), run(len(images) + count)
    return count / (long[0] - short[0]), (long[1] - short[1]) / count


class Peer:
    """The Python service, as `Server` is ours."""

    cpu_seconds, memory = Server.cpu_seconds, Server.memory

    def __init__(self, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, ROOT / "tests/peer/serve.py", model, str(port)])
        self.address = f"127.0.0.1:{port}"
        while True:
            assert self.process.poll() is None, "the Python service did not start"
            try:
                return socket.create_connection(("127.0.0.1", port)).close()
            except ConnectionRefusedError:
                time.sleep(0.1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def measure(name, server, images, clients, seconds):
    bodies = requests(server.address, images)
    # Not measured: first requests, which grow the arena.
    asyncio.run(closed_loop(server.address, bodies, clients, 3))
    before, memory = server.cpu_seconds(), server.memory()
    results = asyncio.run(closed_loop(server.address, bodies, clients, seconds))
    rate = row(name, results, seconds, server.cpu_seconds() - before)
    print(f"  memory of {name}: {memory:.0f} MB before, {server.memory():.0f} MB after {len(results)} requests", file=sys.stderr)
    return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--programs", type=Path, default=Path(os.environ.get("PROGRAMS", ROOT / "target/release")))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("serve", nargs="*", help="arguments of `runtime serve`, after `--`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = draw(args.images, Path(folder))
        print("| | images per second | failures | p50, ms | p99, ms | CPU time per image |\n|---|---|---|---|---|---|")
        rate, cpu = with_stdin(args.programs, args.model, images, int(50 * args.seconds))
        print(f"| `detect --stdin` | {rate:.1f} | 0 | | | {1000 * cpu:.2f} ms |")
        with Server(args.programs, "--model", args.model, *args.serve) as server:
            capacity = measure(f"`runtime serve`, {args.clients} clients", server, images, args.clients, args.seconds)
            bodies = requests(server.address, images)
            results = asyncio.run(open_loop(server.address, bodies, 2 * capacity, args.seconds / 2))
            row(f"the same at {2 * capacity:.0f} requests per second", results, args.seconds / 2)
            refused = [duration for status, duration in results if status == 429]
            others = sum(status not in (200, 429) for status, _ in results)
            print(f"  refused: {len(refused)}, p99 {percentile(refused, 99):.1f} ms; other failures: {others}", file=sys.stderr)
        with Peer(args.model) as peer:
            measure(f"FastAPI and onnxruntime, {args.clients} clients", peer, images, args.clients, args.seconds)


if __name__ == "__main__":
    main()
