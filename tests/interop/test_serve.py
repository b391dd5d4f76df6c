"""`runtime serve` as its clients see it: Triton's client, raw JSON, curl; under load, reload, and what goes wrong."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from conftest import call
from server import Server

NAME = "shapes"

# Width and height. The images are resized to inputs of several shapes.
SIZES = [(640, 480), (480, 640), (320, 320), (1024, 300), (200, 150)]

SCORE_TOLERANCE, BOX_TOLERANCE = 1e-5, 0.01


@pytest.fixture(scope="module")
def photos(data, tmp_path_factory):
    """A folder of 16 JPEG files of five sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number, path in enumerate(sorted(path for path in (data / "test").iterdir())[:16]):
        image = Image.open(path).convert("RGB").resize(SIZES[number % len(SIZES)])
        image.save(folder / f"{number:02}.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def images(photos):
    """The bytes of each file."""
    return [path.read_bytes() for path in sorted(photos.iterdir())]


@pytest.fixture(scope="module")
def expected(programs, model, photos):
    """The object of `detect --json` for each file."""
    found = json.loads(call(programs / "runtime", "detect", "--model", model, "--json", "-", photos))
    assert len(found) == 16 and sum(len(one["detections"]) for one in found) > 40
    return found


@pytest.fixture
def repository(model, tmp_path):
    """A model repository with version 1."""
    repository = tmp_path / "models"
    add_version(repository, 1, model.read_bytes())
    return repository


def add_version(repository, version, content):
    """Adds a version of the model as one step, so that no half of it can be seen."""
    partial = repository / f".{version}"
    partial.mkdir(parents=True)
    (partial / "model.onnx").write_bytes(content)
    (repository / NAME).mkdir(exist_ok=True)
    partial.rename(repository / NAME / str(version))


def assert_same(found, expected):
    """`found` and `expected` are objects with width, height and detections."""
    assert (found["width"], found["height"]) == (expected["width"], expected["height"])
    assert len(found["detections"]) == len(expected["detections"])
    for one, other in zip(found["detections"], expected["detections"]):
        assert (one["label"], one["category_id"]) == (other["label"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=SCORE_TOLERANCE)
        assert one["box"] == pytest.approx(other["box"], abs=BOX_TOLERANCE)


def infer(address, image, **options):
    with triton.InferenceServerClient(address, connection_timeout=60, network_timeout=60) as client:
        tensor = triton.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], dtype=object))
        return client.infer(NAME, [tensor], **options)


def outcome(request, *arguments):
    """The result of a request, or its status as text."""
    try:
        return request(*arguments)
    except InferenceServerException as error:
        return error.status()


def at_once(threads, request, arguments):
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(request, arguments))


def test_tritonclient_gets_the_detections_of_detect(programs, repository, images, expected):
    with Server(programs, "--models", repository, "--max-batch", "8", "--max-queue-delay", "20000") as server:
        sent = [*images[:7], b"no image", *images[7:]]
        results = at_once(8, lambda image: outcome(infer, server.address, image), sent)
        assert results.pop(7) == "400"
        for result, one in zip(results, expected):
            count = result.as_numpy("num_detections").item()
            assert count == len(one["detections"])
            boxes, scores = result.as_numpy("detection_boxes")[0][:count], result.as_numpy("detection_scores")[0][:count]
            assert np.abs(boxes - np.array([d["box"] for d in one["detections"]]).reshape(-1, 4)).max(initial=0) < BOX_TOLERANCE
            assert np.abs(scores - np.array([d["score"] for d in one["detections"]])).max(initial=0) < SCORE_TOLERANCE
            assert_same(json.loads(result.as_numpy("detections").reshape(-1)[0]), one)

        with triton.InferenceServerClient(server.address) as client:
            assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(NAME)
            assert [tensor["name"] for tensor in client.get_model_metadata(NAME)["inputs"]] == ["image"]
            assert client.get_model_config(NAME)["dynamic_batching"]["preferred_batch_size"] == [8]
            [statistics_] = client.get_inference_statistics(NAME)["model_stats"]
        metrics = server.metrics()
        assert metrics["nv_inference_request_success"] == 16 and metrics["nv_inference_request_failure"] == 1
        assert metrics["nv_inference_count"] == statistics_["inference_count"] == 16
        assert metrics["nv_inference_exec_count"] == statistics_["execution_count"] < 16
        assert metrics["nv_inference_pending_request_count"] == 0
        assert statistics_["inference_stats"]["success"]["count"] == 16
        assert statistics_["inference_stats"]["fail"]["count"] == 1
        for stage in ["queue", "compute_input", "compute_infer", "compute_output"]:
            assert statistics_["inference_stats"][stage]["count"] == 16
            microseconds = statistics_["inference_stats"][stage]["ns"] / 1000
            assert metrics[f"nv_inference_{stage}_duration_us"] == pytest.approx(microseconds, rel=0.01, abs=20)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritonclient_may_compress(programs, repository, images, expected, algorithm):
    with Server(programs, "--models", repository) as server:
        options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        result = infer(server.address, images[0], **options)
        assert_same(json.loads(result.as_numpy("detections").reshape(-1)[0]), expected[0])


def test_tritonclient_sends_mixed_sizes_and_a_broken_one_in_one_request(programs, repository, images, expected):
    with Server(programs, "--models", repository) as server, triton.InferenceServerClient(server.address) as client:
        tensor = triton.InferInput("image", [4, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[images[0]], [b"no image"], [images[1]], [images[3]]], dtype=object))
        outputs = [triton.InferRequestedOutput("detections", binary_data=False), triton.InferRequestedOutput("num_detections")]
        result = client.infer(NAME, [tensor], outputs=outputs, request_id="7")
        assert result.get_response()["id"] == "7"
        answers = [json.loads(text) for text in result.as_numpy("detections").reshape(-1)]
        for answer, one in zip([answers[0], *answers[2:]], [expected[0], expected[1], expected[3]]):
            assert_same(answer, one)
        assert "JPEG" in answers[1]["error"]
        counts = [len(answer.get("detections", [])) for answer in answers]
        assert result.as_numpy("num_detections").reshape(-1).tolist() == counts


def test_raw_json_and_curl_get_the_same(programs, repository, images, photos, expected):
    with Server(programs, "--models", repository, "--max-batch", "8", "--max-queue-delay", "20000") as server:
        parameters = {"content_type": "base64"}

        def post(image):
            data = [base64.b64encode(image).decode()]
            tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": parameters, "data": data}
            status, body = server.request(f"/v2/models/{NAME}/infer", json.dumps({"inputs": [tensor]}).encode())
            return status, json.loads(body)

        answers = at_once(8, post, [*images, b"no image"])
        status, body = answers.pop()
        assert status == 400 and "JPEG" in body["error"]
        for (status, body), one in zip(answers, expected):
            assert status == 200
            [detections] = [output for output in body["outputs"] if output["name"] == "detections"]
            assert_same(json.loads(detections["data"][0]), one)

        def curl(path):
            command = ["curl", "--silent", "--show-error", "-F", f"image=@{path}", f"{server.url}/detect"]
            return json.loads(subprocess.check_output(command))

        (photos.parent / "broken.jpg").write_bytes(b"no image")
        answers = at_once(8, curl, [*sorted(photos.iterdir()), photos.parent / "broken.jpg"])
        assert "JPEG" in answers.pop()["error"]
        for answer, one in zip(answers, expected):
            assert_same(answer, one)
        metrics = server.metrics()
        assert metrics["nv_inference_request_success"] == metrics["nv_inference_count"] == 32
        assert metrics["nv_inference_request_failure"] == 2
        assert metrics["nv_inference_exec_count"] < 32


def test_detect_draws_for_those_who_accept_an_image(programs, repository, images):
    with Server(programs, "--models", repository) as server:
        status, body = server.request("/detect", images[0], {"Accept": "image/jpeg"})
        assert status == 200
        assert Image.open(io.BytesIO(body)).size == SIZES[0]


def test_a_new_version_loses_no_request_and_a_broken_one_changes_nothing(programs, repository, model, images):
    with Server(programs, "--models", repository) as server:
        sent, lock = iter(range(1000)), threading.Lock()
        statuses = []

        def client(_):
            connection = server.connect()
            while True:
                with lock:
                    number = next(sent, None)
                if number is None:
                    return
                connection.request("POST", "/detect", images[number % 16])
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)

        def version():
            tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
            tensor["data"] = [base64.b64encode(images[0]).decode()]
            status, body = server.request(f"/v2/models/{NAME}/infer", json.dumps({"inputs": [tensor]}).encode())
            assert status == 200, body
            return json.loads(body)["model_version"]

        def ready(version):
            return server.get(f"/v2/models/{NAME}/versions/{version}/ready")[0] == 200

        def wait_for(condition):
            end = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < end, server.text()
                time.sleep(0.05)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            clients = pool.map(client, range(8))
            wait_for(lambda: len(statuses) > 200)
            assert version() == "1"
            add_version(repository, 2, model.read_bytes())
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: ready(2))
            assert version() == "2"
            reloaded_at = len(statuses)
            add_version(repository, 3, b"no model")
            server.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "version 3 cannot be opened" in server.text())
            assert "version 2 serves on" in server.text()
            list(clients)
        assert statuses == [200] * 1000 and reloaded_at < 1000
        assert version() == "2" and not ready(3) and ready(2)
        assert server.get(f"/v2/models/{NAME}/ready")[0] == 200


def test_a_model_file_that_vanishes_changes_nothing(programs, repository, images, expected):
    with Server(programs, "--models", repository) as server:
        shutil.rmtree(repository / NAME)
        assert_same(server.detect(images[0])[1], expected[0])
        server.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert_same(server.detect(images[0])[1], expected[0])
        assert server.get("/v2/health/ready")[0] == 200


def test_sigterm_under_load_answers_what_was_accepted(programs, repository, images):
    server = Server(programs, "--models", repository)
    results, stop = [], threading.Event()

    def client(number):
        connection = server.connect()
        while not stop.is_set():
            start = time.monotonic()
            try:
                connection.request("POST", "/detect", images[number % 16])
                sent = time.monotonic()
                status = connection.getresponse()
                status.read()
                results.append((sent, status.status))
            except (ConnectionError, http.client.HTTPException) as error:
                results.append((start, repr(error)))
                return

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        clients = pool.map(client, range(32))
        while len(results) < 200:
            time.sleep(0.01)
        terminated = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        # Not ready from the first moment on; nobody is sent here any more.
        assert server.process.wait(60) == 0, server.text()
        stop.set()
        list(clients)
    before = [status for sent, status in results if sent < terminated]
    assert set(before) == {200}
    # Some were under way.
    assert sum(status == 200 for _, status in results) > len(before)


def test_500_slow_connections_cost_the_others_nothing(programs, repository, images):
    with Server(programs, "--models", repository, "--max-connections", "600") as server:

        def latencies(count=60):
            connection, times = server.connect(), []
            for number in range(count):
                start = time.monotonic()
                connection.request("POST", "/detect", images[number % 16])
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                times.append(time.monotonic() - start)
            return times

        latencies()
        alone = latencies()
        # Half of them are slow in the header, half in the body.
        head = f"POST /detect HTTP/1.1\r\nHost: {server.address}\r\nContent-Length: 100000\r\n\r\n".encode()
        sockets = [socket.create_connection(server.address.split(":")) for _ in range(500)]
        done = threading.Event()

        def drip():
            for number, one in enumerate(sockets):
                if number % 2:
                    one.sendall(head)
            while not done.wait(1):
                for one in sockets:
                    with contextlib.suppress(OSError):
                        one.sendall(b"P")

        slow = threading.Thread(target=drip)
        slow.start()
        try:
            time.sleep(1.5)
            beside = latencies()
        finally:
            done.set()
            slow.join()
            for one in sockets:
                one.close()
        # The 95th of a hundred, since the machine of a test has other work too.
        assert statistics.median(beside) < 1.5 * statistics.median(alone) + 0.01
        assert sorted(beside)[56] < 3 * sorted(alone)[56] + 0.05


def test_a_client_that_stops_in_its_body_frees_its_place(programs, repository, images):
    with Server(programs, "--models", repository, "--max-queue", "4") as server:
        for _ in range(20):
            with socket.create_connection(server.address.split(":")) as one:
                one.sendall(b"POST /detect HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(images[0]))
                one.sendall(images[0][:1000])
        assert [server.detect(image)[0] for image in images] == [200] * 16
        assert server.metrics()["nv_inference_pending_request_count"] == 0


def test_without_descriptors_it_waits_and_goes_on(programs, repository, images):
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
    with Server(programs, "--models", repository, preexec_fn=limit) as server:
        sockets = [socket.create_connection(server.address.split(":")) for _ in range(120)]
        time.sleep(1)
        before = server.cpu_seconds()
        time.sleep(2)
        assert server.cpu_seconds() - before < 0.5, "it spins"
        for one in sockets:
            one.close()
        assert server.detect(images[0])[0] == 200


def test_a_full_disk_below_its_log_stops_nothing(programs, repository, images, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [programs / "runtime", "serve", "--listen", address, "--models", repository]
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(list(map(str, command)), stderr=full, stdout=full)
    try:
        end = time.monotonic() + 60
        while True:
            assert process.poll() is None and time.monotonic() < end
            with contextlib.suppress(ConnectionError):
                connection = http.client.HTTPConnection(address, timeout=60)
                connection.request("GET", "/v2/health/ready")
                if connection.getresponse().status == 200:
                    break
            time.sleep(0.05)
        for image in images:
            connection = http.client.HTTPConnection(address, timeout=60)
            connection.request("POST", "/detect", image)
            assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()


def test_what_is_too_much_is_refused_at_once(programs, repository, images):
    """Twice as many clients as places: the excess gets 429 with Retry-After, the others their detections."""
    with Server(programs, "--models", repository, "--max-queue", "4", "--workers", "1") as server:

        def send(number):
            connection, start = server.connect(), time.monotonic()
            connection.request("POST", "/detect", images[3])
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader("Retry-After"), time.monotonic() - start

        results = at_once(64, send, range(640))
        statuses = [status for status, _, _ in results]
        assert set(statuses) == {200, 429}
        assert all(after and int(after) >= 1 for status, after, _ in results if status == 429)
        metrics = server.metrics()
        assert metrics["nv_inference_request_success"] == statuses.count(200)
        rejected = sum(value for name, value in metrics.items() if 'reason="REJECTED"' in name and "request_failure" in name)
        assert rejected == statuses.count(429)
