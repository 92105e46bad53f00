"""Images that do not come alone, as the front opens them; the model server behind it answers each with its size."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.front_endpoint import GOOD, PATIENCE_S, Endpoint, answer

IMAGES = [b"first image", b"second\r\n--image", b"\xff\xd8\xff third"]
JSON = "application/json"
NESTED = b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--"
LINES = "application/jsonlines"
AS_MAIL = b'; filename="a.jpg"\r\nContent-Transfer-Encoding: base64'
TOP_K_FIELD = b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n%s\r\n'


def text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def form(*images: bytes, boundary: bytes = b"b", name: bytes = b'; filename="a.jpg"') -> bytes:
    head = b'Content-Disposition: form-data; name="image"' + name + b"\r\n\r\n"
    return (
        b"".join(b"--" + boundary + b"\r\n" + head + image + b"\r\n" for image in images) + b"--" + boundary + b"--\r\n"
    )


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path, lambda number: answer(GOOD))
    yield endpoint
    endpoint.close()


def ask(endpoint: Endpoint, media_type: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    given = {"Content-Type": media_type} | {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=PATIENCE_S)) as connection:
        connection.request("POST", "/invocations", body=body, headers=given)
        response = connection.getresponse()
        return response.status, response.read()


def lengths(endpoint: Endpoint) -> list[int]:
    """Of the images that the model server got."""
    lines = [line for head in endpoint.model_server.heads for line in head.split(b"\r\n")]
    return sorted(int(line[15:]) for line in lines if line.startswith(b"Content-Length:"))


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("multipart/form-data; boundary=b", form(IMAGES[0])),
        ('multipart/form-data; boundary="b"', form(IMAGES[0], name=b"")),
        (JSON, json.dumps({"image": text(IMAGES[0])}).encode()),
        (JSON, json.dumps({"image": "data:image/png;base64," + text(IMAGES[0]), "more": 1}).encode()),
        ("application/json; charset=utf-8", json.dumps({"image": {"b64": text(IMAGES[0])}}).encode()),
        (JSON, json.dumps({"image": base64.encodebytes(IMAGES[0]).decode()}).encode()),
        (JSON, json.dumps({"image": text(IMAGES[0]).rstrip("=")}).encode()),
        ("multipart/form-data; boundary=b", form(text(IMAGES[0]).encode(), name=AS_MAIL)),
    ],
)
def test_one_image_in_an_envelope_is_answered_as_if_it_had_come_alone(endpoint: Endpoint, media_type: str, body: bytes):
    assert ask(endpoint, media_type, body) == (200, GOOD)
    assert lengths(endpoint) == [len(IMAGES[0])]


@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("multipart/form-data; boundary=b", form(*IMAGES)),
        (JSON, json.dumps({"images": [text(each) for each in IMAGES]}).encode()),
        (JSON, json.dumps({"instances": [{"b64": text(each)} for each in IMAGES]}).encode()),
        (JSON, json.dumps({"instances": [{"image_bytes": {"b64": text(each)}} for each in IMAGES]}).encode()),
    ],
)
def test_several_are_answered_with_a_list(endpoint: Endpoint, media_type: str, body: bytes):
    status, answered = ask(endpoint, media_type, body)
    one = {"predictions": json.loads(GOOD)["predictions"]}
    assert (status, json.loads(answered)) == (200, {"answers": [one] * 3, "model": "m"})
    assert lengths(endpoint) == sorted(map(len, IMAGES))


def test_lines_are_answered_with_lines(endpoint: Endpoint):
    lines = [json.dumps({"image": text(IMAGES[0])}), "", "no json", json.dumps({"image": text(IMAGES[1])})]
    status, answered = ask(endpoint, LINES, "\n".join(lines).encode(), Accept=LINES)
    first, second, third = map(json.loads, answered.splitlines())
    assert status == 200
    assert first == third == json.loads(GOOD)
    assert second["error"] == "the body is no JSON"


@pytest.mark.parametrize("media_type", ["application/jsonlines", "application/x-ndjson"])
def test_lines_are_answered_as_they_came(endpoint: Endpoint, media_type: str):
    with closing(http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=PATIENCE_S)) as connection:
        body = json.dumps({"image": text(IMAGES[0])}) + "\r\n\r\n"
        connection.request("POST", "/invocations", body=body, headers={"Content-Type": media_type})
        response = connection.getresponse()
        assert (response.status, response.headers["Content-Type"], response.read()) == (200, media_type, GOOD)


def test_base64_in_the_alphabet_for_addresses_is_the_same_image(endpoint: Endpoint):
    image = b"\xfb\xff\xfe\xff"
    assert "-" in base64.urlsafe_b64encode(image).decode()
    assert ask(endpoint, JSON, json.dumps({"image": base64.urlsafe_b64encode(image).decode()}).encode())[0] == 200
    assert endpoint.model_server.bodies == [image]


def test_top_k_in_a_form_holds_unless_a_header_says_otherwise(endpoint: Endpoint):
    body = TOP_K_FIELD % b"7" + form(IMAGES[0])
    assert ask(endpoint, "multipart/form-data; boundary=b", body) == (200, GOOD)
    assert ask(endpoint, "multipart/form-data; boundary=b", body, X_Top_K="2") == (200, GOOD)
    first, second = endpoint.model_server.heads
    assert b"X-Top-K: 7\r\n" in first
    assert b"X-Top-K: 2\r\n" in second
    assert lengths(endpoint) == [len(IMAGES[0])] * 2


def test_top_k_in_the_document_holds_unless_a_header_says_otherwise(endpoint: Endpoint):
    body = json.dumps({"image": text(IMAGES[0]), "top_k": 7}).encode()
    assert ask(endpoint, JSON, body)[0] == 200
    assert ask(endpoint, JSON, body, X_Top_K="2")[0] == 200
    first, second = endpoint.model_server.heads
    assert b"X-Top-K: 7\r\n" in first
    assert b"X-Top-K: 2\r\n" in second


@pytest.mark.parametrize(
    ("status", "media_type", "body"),
    [
        (400, JSON, b""),
        (400, JSON, b"[" * 100_000),
        (400, JSON, b"9" * 100_000),
        (400, JSON, b"\xff\xfe"),
        (400, JSON, b"null"),
        (400, JSON, b"{}"),
        (400, JSON, b'{"image": 5}'),
        (400, JSON, b'{"image": ""}'),
        (400, JSON, b'{"image": "\\ud800"}'),
        (400, JSON, b'{"images": []}'),
        (400, JSON, b'{"images": "abc"}'),
        (400, JSON, b'{"image": "eA==", "top_k": -1}'),
        (400, JSON, b'{"image": "eA==", "top_k": "many"}'),
        (413, JSON, json.dumps({"images": ["eA=="] * 33}).encode()),
        (400, LINES, b"\n\n"),
        (413, LINES, b'{"image": "eA=="}\n' * 33),
        (400, "multipart/form-data", form(b"x")),
        (400, "multipart/form-data; boundary=", form(b"x")),
        (400, "multipart/form-data; boundary=" + "b" * 100, form(b"x")),
        (400, "multipart/form-data; boundary=c", form(b"x")),
        (400, "multipart/form-data; boundary=b", b"--b\r\n"),
        (400, "multipart/form-data; boundary=b", b"--b--\r\n"),
        (400, "multipart/form-data; boundary=b", form(b"")),
        (400, "multipart/form-data; boundary=b", form(b"no base64!", name=AS_MAIL)),
        (400, "multipart/form-data; boundary=b", TOP_K_FIELD % b"many" + form(b"x")),
        (400, "multipart/form-data; boundary=b", TOP_K_FIELD % b"3" + b"--b--\r\n"),
        (400, JSON, b'{"image": "eA==eA=="}'),
        (400, JSON, b'{"image": "\\n"}'),
        (
            400,
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--",
        ),
        (413, "multipart/form-data; boundary=b", form(*[b"x"] * 33)),
        (413, "multipart/form-data; boundary=b", form(*[b"x"] * 5000)),
        (406, JSON + "; csv", b""),
    ],
)
def test_what_is_no_envelope_gets_a_sentence(endpoint: Endpoint, status: int, media_type: str, body: bytes):
    headers = {"Accept": "text/csv"} if status == 406 else {}
    body = body or json.dumps({"images": ["eA==", "eA=="]}).encode() if status == 406 else body
    answered, document = ask(endpoint, media_type, body, **headers)
    assert answered == status, document
    assert set(json.loads(document)) == {"error", "hint"}
    assert endpoint.ask(body=b"\xff\xd8\xff", Content_Type="image/jpeg")[0] == 200
