"""A running `runtime serve`."""

import http.client
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request


class Server:
    """Starts the server on a free port and waits until it is ready. Stops it at the end of a `with` block."""

    def __init__(self, programs, *arguments, ready=True, **options):
        command = [programs / "runtime", "serve", "--listen", "127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, **options)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://(127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError(f"the server did not start:\n{''.join(self.log)}")
        self.address = found[1]
        self.url = f"http://{self.address}"
        # A full pipe would stop the server.
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        if ready:
            self.wait_until_ready()

    def wait_until_ready(self, seconds=60):
        end = time.monotonic() + seconds
        while self.get("/v2/health/ready")[0] != 200:
            assert self.process.poll() is None and time.monotonic() < end, self.text()
            time.sleep(0.05)

    def request(self, path, data=None, headers={}, method=None, timeout=60):
        """Status and body."""
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path, **options):
        return self.request(path, **options)

    def detect(self, image, query="", headers={}):
        """Status and JSON of `POST /detect`."""
        status, body = self.request(f"/detect{query}", image, {"Content-Type": "application/octet-stream", **headers})
        return status, json.loads(body)

    def connect(self):
        return http.client.HTTPConnection(self.address, timeout=60)

    def metrics(self):
        """The value of each sample of /metrics, summed over its labels, and that of each name with its labels."""
        values = {}
        for line in self.get("/metrics")[1].decode().splitlines():
            if line and not line.startswith("#"):
                sample, value = line.rsplit(" ", 1)
                for key in {sample, sample.split("{")[0]}:
                    values[key] = values.get(key, 0) + float(value)
        return values

    def memory(self):
        """Resident memory in MiB."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s*(\d+)", status.read())[1]) / 1024

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def text(self):
        return "".join(self.log)

    def stop(self, seconds=60):
        """Sends SIGTERM and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.reader.join(5)
        return code

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            code = self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        if kind is None:
            assert code == 0, self.text()
