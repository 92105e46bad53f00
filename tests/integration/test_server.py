"""The real server program, the real model server under it, and clients on sockets."""

from __future__ import annotations

import base64
import concurrent.futures
import csv
import dataclasses
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from safetensors.numpy import load_file
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance
from tests.conftest import MODEL_CLASSES, jpeg
from tests.proxy import Proxy

from image_classifier.contract.endpoint import MAX_PORT, parse_ready_line
from image_classifier.contract.image_formats import FORMATS
from image_classifier.serving.front import MAX_CONNECTIONS
from image_classifier.serving.openapi import PATHS
from image_classifier.vision.artifact import Artifact, load_model, write_model

WORKERS = 2
PATIENCE_S = 60.0
CONFORMING = [
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
    conformance.allow_header_conformance,
]
EVIL = "import pathlib\npathlib.Path({marker!r}).touch()\n"


@dataclass
class Program:
    """A server program, everything it printed, and what /ping answered while it started."""

    process: subprocess.Popen[bytes]
    url: str
    temporary: Path
    log: Path
    reports_at_first_ping: int | None = None

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    @property
    def ready(self) -> bool:
        return any(line.startswith("ready ") for line in self.lines)

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """The forked processes that answer, not the one they are forked from."""
        found = [p for p in self.tree() if _runs(p, "model_service_worker")]
        return [p for p in found if p.parent() in found]

    def post(self, body: bytes, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(f"{self.url}/invocations", data=body, headers=named, timeout=PATIENCE_S)


def _runs(process: psutil.Process, program: str) -> bool:
    try:
        return any(program in word for word in process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False


def free_port() -> int:
    """One that the model server takes: the system's own choice is always too high."""
    while True:
        port = random.randint(20_000, MAX_PORT)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def start(base: Path, temporary: Path, **environment: str) -> Program:
    """Starts the program as a container does: through the environment only, in a folder it cannot rely on."""
    temporary.mkdir()
    port = int(environment.get("SAGEMAKER_BIND_TO_PORT") or free_port())
    log = temporary.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "image_classifier.serving.entry", "serve"],
            env={
                "PATH": "/usr/bin:/bin",
                "PYTHONPATH": str(Path(__file__).parents[2] / "code"),
                "SAGEMAKER_BASE_DIR": str(base),
                "SAGEMAKER_MODEL_SERVER_WORKERS": str(WORKERS),
                "CLASSIFIER_BIND_TO_HOST": "127.0.0.1",
                "TMPDIR": str(temporary),
            }
            | environment
            | {"SAGEMAKER_BIND_TO_PORT": str(port)},
            cwd="/",
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Program(process, f"http://127.0.0.1:{port}", temporary, log)


def wait_until(condition: Callable[[], bool], program: Program) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, program.output
        time.sleep(0.02)


def wait_until_ready(program: Program) -> None:
    """Asks /ping all the time, as SageMaker does, and notes how many workers had reported when it was first 200."""
    while program.reports_at_first_ping is None or not program.ready:
        assert program.process.poll() is None, program.output
        if program.reports_at_first_ping is None:
            with suppress(requests.ConnectionError):
                assert requests.get(f"{program.url}/ping", timeout=5).status_code == 200
                program.reports_at_first_ping = len(list(program.temporary.glob("ic-*/workers/*")))
        time.sleep(0.005)


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.fixture(scope="module")
def artifact(model_dir: Path) -> Artifact:
    return load_model(model_dir)


@pytest.fixture(scope="module")
def base(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder whose model folder also holds things that a trusting server would run or install."""
    base = tmp_path_factory.mktemp("base")
    shutil.copytree(model_dir, base / "model", copy_function=os.link)
    evil = EVIL.format(marker=str(base / "executed"))
    (base / "model" / "code").mkdir()
    (base / "model" / "code" / "requirements.txt").write_text("/nowhere/to/be-found.whl\n")
    for name in ("inference.py", "sitecustomize.py", "PIL.py", "json.py"):
        (base / "model" / "code" / name).write_text(evil)
        (base / "model" / name).write_text(evil)
    for folder, _, _ in os.walk(base / "model"):
        Path(folder).chmod(0o555)
    return base


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield Proxy(listener)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(base: Path, home: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Overheard: what it would send elsewhere comes to `proxy`."""
    overheard = proxy.settings | {"HOME": str(home), "CLASSIFIER_ENGINE": "openvino"}
    program = start(base, tmp_path_factory.mktemp("server") / "tmp", **overheard)
    try:
        wait_until_ready(program)
        yield program
    finally:
        program.process.terminate()
        program.process.wait(PATIENCE_S)


def test_ping_is_refused_until_every_worker_reproduced_the_golden_samples(server: Program, artifact: Artifact):
    assert server.reports_at_first_ping == WORKERS
    (line,) = [line for line in server.lines if line.startswith("ready ")]
    assert parse_ready_line(line) == (server.url, artifact.fingerprint)
    assert f"workers={WORKERS}" in line
    assert len(server.workers()) == WORKERS


def test_served_probabilities_are_those_of_training(server: Program, artifact: Artifact):
    for sample in artifact.golden:
        response = server.post(sample.image, X_Top_K="100", Content_Type="image/jpeg")
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/json"
        answer = {p["label"]: p["probability"] for p in response.json()["predictions"]}
        assert [answer[label] for label in MODEL_CLASSES] == pytest.approx(sample.probabilities, abs=1e-5)
        assert response.json()["model"] == artifact.fingerprint


def picture(mode: str, file_format: str, **options: object) -> bytes:
    levels = np.linspace(0, 255, 80 * 60).reshape(60, 80).astype(np.uint8)
    image = Image.fromarray(levels)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    elif mode != "L":
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("image/jpeg", picture("CMYK", "JPEG")),
        ("image/jpeg", picture("L", "JPEG")),
        ("image/png", picture("RGBA", "PNG")),
        ("image/png", picture("I;16", "PNG")),
        ("image/bmp", picture("P", "BMP")),
        *((each.media_types[0], picture("RGB", each.pillow)) for each in FORMATS),
        ("Application/X-Image; charset=x", picture("LA", "PNG")),
        ("application/octet-stream", picture("RGB", "JPEG", exif=b"Exif\0\0broken")),
        ("", picture("RGB", "JPEG")),
    ],
)
def test_every_kind_of_picture_is_answered(server: Program, content_type: str, body: bytes):
    response = server.post(body, Content_Type=content_type, Accept="text/csv;q=0.8, text/html")
    assert response.status_code == 200, response.text
    rows = list(csv.reader(io.StringIO(response.content.decode("utf-8"))))
    assert len(rows) == 5
    assert {label for label, _ in rows} < set(MODEL_CLASSES)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def raw(url: str, head: bytes, body: bytes = b"") -> tuple[int, bytes]:
    """A request written byte by byte: (status, body of the answer)."""
    with closing(connect(url)) as connection:
        connection.sendall(head.replace(b"\n", b"\r\n") + b"Host: x\r\n\r\n" + body)
        response = http.client.HTTPResponse(connection)
        with closing(response):
            response.begin()
            return response.status, response.read()


def bad_post(headers: bytes, body: bytes = b"x") -> tuple[bytes, bytes]:
    return b"POST /invocations HTTP/1.1\nContent-Length: %d\n" % len(body) + headers, body


def huge_png() -> bytes:
    """The header of a PNG of 50,000 x 50,000 pixels, which no server should start to decode."""
    small = io.BytesIO()
    Image.new("1", (8, 8)).save(small, "PNG")
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    return small.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + small.getvalue()[33:]


JPEG = b"Content-Type: image/jpeg\n"
BAD_REQUESTS = [
    (400, bad_post(JPEG, b"")),
    (400, bad_post(JPEG, b"this is no image")),
    (400, bad_post(JPEG, jpeg(0)[:400])),
    (400, bad_post(JPEG, b"GIF89a" + bytes(50))),
    (400, bad_post(JPEG + b"X-Top-K: many\n", jpeg(0))),
    (400, bad_post(JPEG + b"X-Amzn-SageMaker-Custom-Attributes: top_k=0\n", jpeg(0))),
    (406, bad_post(JPEG + b"Accept: image/png\n", jpeg(0))),
    (406, bad_post(JPEG + "Accept: té日\n".encode(), jpeg(0))),
    (413, bad_post(JPEG, bytes(7 * 1024 * 1024))),
    (413, bad_post(b"Content-Type: image/png\n", huge_png())),
    (415, bad_post("Content-Type: image/jpég\n".encode())),
    (415, bad_post(b"Content-Type: \xff\xfe\n")),
    (415, bad_post(b"Content-Type: application/x-npy\n", b"\x93NUMPY")),
    (400, bad_post(b"Content-Type: application/json\n", b"{not json")),
    (400, bad_post(b"Content-Type: application/json\n", b'{"image": "no base64"}')),
    (413, bad_post(b"Content-Type: application/json\n", b'{"images": [' + b'"eA==",' * 99 + b'""]}')),
    (415, bad_post(b"Content-Type: text/plain\n", b"\xff\xfe")),
    (400, bad_post(b"Content-Type: multipart/form-data\n")),
    (400, bad_post(b"Content-Type: multipart/form-data; boundary=\n")),
    (400, bad_post(b"Content-Type: multipart/form-data; boundary=b\n", b"--b\r\nno end")),
    (415, bad_post(b"Content-Type: application/x-www-form-urlencoded\n", b"body=1&body=2")),
    (415, bad_post(b"Content-Type: application/x-www-form-urlencoded\n", b"body=%zz&body=1")),
    (415, bad_post(b"Content-Encoding: gzip\n", jpeg(0))),
    (413, bad_post(JPEG, bytes(17 * 1024 * 1024))),
    (417, bad_post(JPEG + b"Expect: magic\n", jpeg(0))),
    (404, (b"GET /% HTTP/1.1\n", b"")),
    (404, (b"DELETE /models/model HTTP/1.1\n", b"")),
    (404, (b"PUT /models/model?min_worker=0 HTTP/1.1\n", b"")),
    (404, (b"POST /models?url=http://127.0.0.1:1/x HTTP/1.1\nContent-Length: 0\n", b"")),
    (404, (b"POST /models/model/invoke HTTP/1.1\nContent-Length: 0\n", b"")),
    (404, (b"GET /metrics HTTP/1.1\n", b"")),
    (405, (b"GET /invocations HTTP/1.1\n", b"")),
    (405, (b"POST /ping HTTP/1.1\nContent-Length: 0\n", b"")),
    (431, (b"GET /ping HTTP/1.1\nX: " + bytes(20_000).replace(b"\0", b"x") + b"\n", b"")),
    (431, (b"GET /ping HTTP/1.1\n" + b"".join(b"X-%d: 1\n" % number for number in range(500)), b"")),
    (400, (b"PRI * HTTP/2.0\n", b"")),
    (400, (b"POST /invocations HTTP/1.1\nContent-Length: 1\nContent-Length: 2\n", b"ab")),
    (400, (b"POST /invocations HTTP/1.1\nContent-Length: 4\nTransfer-Encoding: chunked\n", b"0\r\n\r\n")),
    (400, (b"POST /invocations HTTP/1.1\nTransfer-Encoding: chunked\n", b"ZZ\r\nabc\r\n")),
]


def test_bad_requests_get_a_sentence_and_cost_no_worker(server: Program):
    before = {p.pid for p in server.workers()}
    for status, (head, body) in BAD_REQUESTS:
        answered, text = raw(server.url, head, body)
        assert (answered, head) == (status, head)
        answer = json.loads(text)
        assert set(answer) == {"error", "hint"}
        assert answer["error"]
    assert {p.pid for p in server.workers()} == before
    assert "Traceback" not in server.output


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("is_image", [True, False], ids=["an image", "any bytes"])
def test_whatever_is_made_of_its_description_is_answered_as_described(
    server: Program, mode: GenerationMode, is_image: bool
):
    before, statuses = {p.pid for p in server.workers()}, set()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} == set(PATHS) - {"/openapi.json"}
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and operation.path != "/invocations":
            continue  # which take nothing that could be wrong
        given_body = (
            {"body": jpeg(0), "media_type": "image/jpeg"} if is_image and operation.path == "/invocations" else {}
        )

        @settings(max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
        @given(case=operation.as_strategy(generation_mode=mode, **given_body))
        def ask(case: schemathesis.Case) -> None:
            response = case.call(timeout=PATIENCE_S)
            statuses.add((case.path, response.status_code))
            case.validate_response(response, checks=CONFORMING)

        ask()
    assert ("/invocations", 200) in statuses or not is_image or mode is GenerationMode.NEGATIVE
    assert {p.pid for p in server.workers()} == before
    assert "Traceback" not in server.output


def test_a_client_goes_on_in_its_session_after_errors(server: Program):
    with requests.Session() as session:
        statuses = [
            session.post(f"{server.url}/invocations", data=body, timeout=PATIENCE_S).status_code
            for body in (jpeg(0), b"no image", jpeg(1), b"", jpeg(2))
        ]
    assert statuses == [200, 400, 200, 400, 200]


def test_there_is_one_port_and_the_management_api_is_on_none(server: Program):
    ports = {c.laddr.port for p in server.tree() for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    assert ports == {int(server.url.rsplit(":", 1)[1])}


def test_what_curl_sends_when_it_is_told_nothing_is_answered_if_it_is_an_image(server: Program):
    response = server.post(jpeg(0), Content_Type="application/x-www-form-urlencoded")
    assert response.status_code == 200
    assert response.headers["X-Engine"].startswith("openvino/")


def test_a_form_and_base64_are_answered_as_the_image_alone_is(server: Program):
    alone = server.post(jpeg(0)).json()
    files = {"image": ("photo.jpg", jpeg(0), "image/jpeg")}
    form = requests.post(f"{server.url}/invocations", files=files, timeout=PATIENCE_S)
    text = base64.b64encode(jpeg(0)).decode()
    document = requests.post(f"{server.url}/invocations", json={"image": text}, timeout=PATIENCE_S)
    assert form.json() == document.json() == alone


def test_several_images_are_answered_in_their_order_and_a_wrong_one_costs_the_others_nothing(server: Program):
    alone = [server.post(jpeg(seed)).json() for seed in range(3)]
    texts = [base64.b64encode(jpeg(seed)).decode() for seed in range(3)]
    asked = {"images": [texts[0], "?", texts[1], base64.b64encode(b"no image").decode(), texts[2]]}
    response = requests.post(f"{server.url}/invocations", json=asked, timeout=PATIENCE_S)
    answers = response.json()["answers"]
    assert [answers[0], answers[2], answers[4]] == [{"predictions": each["predictions"]} for each in alone]
    assert set(answers[1]) == set(answers[3]) == {"error", "hint"}
    assert response.json()["model"] == alone[0]["model"]
    lines = "".join(json.dumps({"image": text}) + "\n" for text in texts)
    headers = {"Content-Type": "application/jsonlines", "Accept": "application/jsonlines"}
    response = requests.post(f"{server.url}/invocations", data=lines, headers=headers, timeout=PATIENCE_S)
    assert [json.loads(line) for line in response.text.splitlines()] == alone


def test_a_request_keeps_its_name_in_the_answer_and_in_the_log(server: Program):
    response = server.post(b"no image", X_Request_Id="photo-17")
    assert response.headers["X-Request-Id"] == "photo-17"
    strange = server.post(jpeg(0), X_Request_Id="\x1b[31m")
    assert len(strange.headers["X-Request-Id"]) == 32
    wait_until(lambda: any('"id": "photo-17"' in line for line in server.lines), server)
    (line,) = [json.loads(line) for line in server.lines if '"id": "photo-17"' in line]
    assert (line["method"], line["path"], line["status"], line["bytes_in"]) == ("POST", "/invocations", 400, 8)


def test_a_path_full_of_control_characters_is_one_line_of_json_in_the_log(server: Program):
    assert raw(server.url, "GET /\x1b[31m%0Aready\u009b HTTP/1.1\n".encode())[0] in {400, 404}
    wait_until(lambda: server.lines[-1].startswith('{"time"'), server)
    assert "\x1b" not in server.output


def test_nothing_is_run_or_installed_from_the_model_folder(server: Program, base: Path):
    assert server.post(jpeg(0)).status_code == 200
    assert not (base / "executed").exists()
    assert "be-found" not in server.output


def test_the_server_and_its_workers_call_nobody_and_leave_nothing_at_home(server: Program, proxy: Proxy, home: Path):
    assert server.post(jpeg(1)).status_code == 200
    assert "engine=openvino" in server.output
    assert proxy.heard == []
    assert list(home.rglob("*")) == []


def test_a_killed_worker_is_replaced(server: Program):
    victim = server.workers()[0]
    victim.kill()
    wait_until(lambda: len(server.workers()) == WORKERS and victim.pid not in {p.pid for p in server.workers()}, server)
    for seed in range(4):
        assert server.post(jpeg(seed)).status_code == 200


def test_a_worker_that_dies_over_a_request_costs_the_client_nothing(server: Program):
    victim = server.workers()[0]
    victim.suspend()  # so that one of the two requests is certainly with it when it dies
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        answers = [pool.submit(server.post, jpeg(seed)) for seed in range(WORKERS)]
        time.sleep(0.3)
        victim.kill()
        assert [answer.result(PATIENCE_S).status_code for answer in answers] == [200] * WORKERS
    wait_until(lambda: len(server.workers()) == WORKERS, server)


def test_a_worker_that_is_stopped_is_replaced_and_its_request_answered(server: Program):
    victim = server.workers()[0]
    victim.suspend()
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        answers = list(pool.map(server.post, [jpeg(seed) for seed in range(WORKERS)]))
    assert [answer.status_code for answer in answers] == [200] * WORKERS
    wait_until(lambda: gone([victim]) and len(server.workers()) == WORKERS, server)


def test_a_client_that_closes_its_side_after_asking_is_answered(server: Program):
    body = jpeg(0)
    with closing(connect(server.url)) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(64).startswith(b"HTTP/1.1 200 OK\r\n")
    with closing(connect(server.url)) as connection:
        connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nonly this")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(64).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_more_idle_connections_than_there_may_be_keep_nobody_out(server: Program):
    idle = [connect(server.url) for _ in range(MAX_CONNECTIONS + 100)]
    try:
        assert server.post(jpeg(0)).status_code == 200
        assert requests.get(f"{server.url}/ping", timeout=PATIENCE_S).status_code == 200
        assert idle[0].recv(1) == b""  # the one that had been idle for longest
    finally:
        for connection in idle:
            connection.close()


def test_two_thousand_bad_requests_cost_no_memory_and_leave_no_traceback(server: Program):
    def ask_all() -> int:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [(status, head, body) for status, (head, body) in BAD_REQUESTS if len(body) < 100_000]
            jobs = [pool.submit(raw, server.url, head, body) for _ in range(20) for _, head, body in asked]
            answers = [job.result(PATIENCE_S)[0] for job in jobs]
        assert answers == [status for status, _, _ in asked] * 20
        return psutil.Process(server.process.pid).memory_info().rss

    first = ask_all()
    assert ask_all() - first < 8 * 1024**2
    assert "Traceback" not in server.output


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(server: Program):
    tree, workers = server.tree(), server.workers()
    for worker in workers:
        worker.suspend()  # so that every request is certainly under way when the signal comes
    with concurrent.futures.ThreadPoolExecutor(3 * WORKERS) as pool:
        answers = [pool.submit(server.post, jpeg(seed)) for seed in range(3 * WORKERS)]
        time.sleep(0.5)  # the server reads what the clients wrote
        server.process.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.resume()
        assert [answer.result(PATIENCE_S).status_code for answer in answers] == [200] * len(answers)
    assert server.process.wait(PATIENCE_S) == 0, server.output
    wait_until(lambda: gone(tree), server)
    assert list(server.temporary.iterdir()) == []
    socket.create_server(("127.0.0.1", int(server.url.rsplit(":", 1)[1]))).close()


def test_two_servers_run_side_by_side_and_each_end_is_clean(base: Path, tmp_path: Path):
    first, second = (start(base, tmp_path / name, SAGEMAKER_MODEL_SERVER_WORKERS="1") for name in ("a", "b"))
    wait_until_ready(first)
    wait_until_ready(second)
    trees = first.tree() + second.tree()
    (jvm,) = [p for p in second.tree() if p.name() == "java"]

    first.process.kill()
    jvm.kill()
    first.process.wait(PATIENCE_S)

    assert second.process.wait(PATIENCE_S) == 1
    wait_until(lambda: gone(trees), second)
    wait_until(lambda: not list(first.temporary.iterdir()), first)
    wait_until(lambda: "error: the model server ended by itself" in second.output, second)
    assert list(second.temporary.iterdir()) == []


def test_a_server_that_has_nothing_to_fork_workers_from_ends_with_a_sentence(base: Path, tmp_path: Path):
    program = start(base, tmp_path / "tmp")
    wait_until_ready(program)
    workers = program.workers()
    (parent,) = {worker.ppid() for worker in workers}
    for process in (psutil.Process(parent), *workers):
        process.kill()
    assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: "error: the process that workers are forked from has died" in program.lines, program)
    assert list(program.temporary.iterdir()) == []


@pytest.mark.parametrize("victim", ["supervisor", "toolkit"])
def test_a_server_whose_supervisor_or_program_is_killed_ends_and_leaves_nothing(
    base: Path, tmp_path: Path, victim: str
):
    program = start(base, tmp_path / "tmp", SAGEMAKER_MODEL_SERVER_WORKERS="1")
    wait_until_ready(program)
    tree = program.tree()
    (supervisor,) = psutil.Process(program.process.pid).children()
    (toolkit,) = [p for p in supervisor.children() if _runs(p, "image_classifier.serving.model_server")]
    {"supervisor": supervisor, "toolkit": toolkit}[victim].kill()
    assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: gone(tree), program)
    assert "error: the model server ended by itself" in program.output
    assert list(program.temporary.iterdir()) == []


def test_a_port_in_use_is_an_error_before_anything_is_loaded(tmp_path: Path):
    port = str(free_port())
    with socket.create_server(("127.0.0.1", int(port))):
        program = start(tmp_path / "no-model-there", tmp_path / "tmp", SAGEMAKER_BIND_TO_PORT=port)
        assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: f"error: port {port} on 127.0.0.1 is in use" in program.lines, program)
    wait_until(lambda: any(line.startswith("hint: ") for line in program.lines), program)


def test_a_model_that_does_not_reproduce_its_golden_samples_is_not_served(model_dir: Path, tmp_path: Path):
    artifact = load_model(model_dir)
    write_model(
        tmp_path / "base" / "model",
        weights=load_file(artifact.weights_path),
        classes=artifact.classes,
        preprocessing=artifact.preprocessing,
        golden=[dataclasses.replace(s, probabilities=s.probabilities[::-1]) for s in artifact.golden],
        config={},
        metrics={},
        data_fingerprint="",
        versions={},
    )
    program = start(tmp_path / "base", tmp_path / "tmp")
    assert program.process.wait(PATIENCE_S) == 1
    wait_until(lambda: "error: the model does not reproduce its golden sample" in program.output, program)
    assert list(program.temporary.iterdir()) == []


def test_a_server_told_to_stop_while_starting_stops(base: Path, tmp_path: Path):
    program = start(base, tmp_path / "tmp")
    wait_until(lambda: any(p.name() == "java" for p in program.tree()), program)
    tree = program.tree()
    program.process.send_signal(signal.SIGINT)
    assert program.process.wait(PATIENCE_S) == 0, program.output
    wait_until(lambda: gone(tree), program)
    assert not program.ready
    assert list(program.temporary.iterdir()) == []
