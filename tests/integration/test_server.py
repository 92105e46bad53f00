"""What the real server program answers, with the real model server under it, to clients on sockets."""

from __future__ import annotations

import base64
import concurrent.futures
import csv
import io
import json
import socket
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as conformance
from tests.conftest import MODEL_CLASSES, jpeg
from tests.proxy import Proxy
from tests.server_program import (
    PATIENCE_S,
    Program,
    bad_post,
    connect,
    raw,
    wait_until,
)

from image_classifier.contract.image_formats import FORMATS
from image_classifier.serving.front import MAX_CONNECTIONS
from image_classifier.serving.openapi import PATHS
from image_classifier.vision.artifact import Artifact

CONFORMING = [
    not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_headers_conformance,
    conformance.response_schema_conformance,
    conformance.allow_header_conformance,
]


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
    headers = {"Accept": "application/jsonlines"}
    response = requests.post(f"{server.url}/invocations", json={"images": texts}, headers=headers, timeout=PATIENCE_S)
    assert response.headers["Content-Type"] == "application/jsonlines"
    assert [json.loads(line) for line in response.text.splitlines()] == alone
    response = server.post(jpeg(0), Accept="application/jsonlines")
    assert (response.headers["Content-Type"], json.loads(response.text)) == ("application/jsonlines", alone[0])


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
    assert "warning: inference.py of SAGEMAKER_PROGRAM is not run" in server.output


def test_the_server_and_its_workers_call_nobody_and_leave_nothing_at_home(server: Program, proxy: Proxy, home: Path):
    assert server.post(jpeg(1)).status_code == 200
    assert "engine=openvino" in server.output
    assert proxy.heard == []
    assert list(home.rglob("*")) == []


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
