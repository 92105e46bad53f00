"""Asking an endpoint: what is sent, and what every kind of answer becomes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classifier.contract import wire
from image_classifier.contract.errors import ConfigError, ImageError, PlatformError
from image_classifier.launch.client import Client, find_images, read_image

GOOD = json.dumps({"predictions": [{"label": "rose", "probability": 0.9}], "model": "m"})


@dataclass
class Server:
    """Answers with `replies` in turn, the last one again and again, and keeps what it was asked."""

    url: str
    replies: list[tuple[int, str]]
    asked: list[tuple[dict[str, str], int]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            self.rfile.read(length)
            made.asked.append((dict(self.headers), length))
            status, text = made.replies.pop(0) if len(made.replies) > 1 else made.replies[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        made = Server(f"http://127.0.0.1:{http.server_port}", [(200, GOOD)])
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield made
        http.shutdown()
        thread.join()


def noise(path: Path, side: int) -> Path:
    """A picture that hardly compresses."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_answers_come_in_the_order_of_the_files(server: Server, tmp_path: Path) -> None:
    files = [tmp_path / f"{number:02}.PNG" for number in range(9)]
    for file in files:
        file.write_bytes(b"x")
    answers = list(Client(server.url).predict_all(files, top_k=3))
    assert [answer.file for answer in answers] == [str(file) for file in files]
    assert {answer.predictions for answer in answers} == {(("rose", 0.9),)}
    headers = server.asked[0][0]
    assert (headers["Content-Type"], headers[wire.TOP_K_HEADER]) == ("image/png", "3")


def test_refused_or_missing_image_is_an_answer_of_its_own(server: Server, tmp_path: Path) -> None:
    server.replies = [(400, json.dumps({"error": "no image", "hint": "send one"}))]
    (tmp_path / "text.jpg").write_text("text")
    client = Client(server.url)
    refused = client.predict(tmp_path / "text.jpg", top_k=1)
    assert refused.to_json() == {"file": str(tmp_path / "text.jpg"), "error": "no image", "hint": "send one"}
    assert "No such file" in client.predict(tmp_path / "none.jpg", top_k=1).error
    assert len(server.asked) == 1


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.replies = [(503, "{}"), (200, GOOD)]
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert Client(server.url).predict(tmp_path / "a.jpg", top_k=1).predictions
    assert len(server.asked) == 2


NOT_A_NUMBER = json.dumps({"predictions": [{"label": "rose", "probability": float("nan")}], "model": "m"})


@pytest.mark.parametrize("reply", [(200, "<html>"), (200, "{}"), (404, "[]"), (200, "[1]"), (200, NOT_A_NUMBER)])
def test_foreign_server_is_recognised(server: Server, tmp_path: Path, reply: tuple[int, str]) -> None:
    server.replies = [reply]
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(PlatformError, match="is not our endpoint"):
        list(Client(server.url).predict_all([tmp_path / "a.jpg"] * 3, top_k=1))


def test_broken_server_is_no_fault_of_the_image(server: Server, tmp_path: Path) -> None:
    server.replies = [(500, json.dumps({"error": "internal error 7"}))]
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(PlatformError, match="internal error 7"):
        Client(server.url).predict(tmp_path / "a.jpg", top_k=1)


def test_nobody_listening_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(PlatformError, match=r"no endpoint answers at http://127.0.0.1:9") as caught:
        Client("http://127.0.0.1:9/").predict(tmp_path / "a.jpg", top_k=1)
    assert "deploy.py serve" in caught.value.hint


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://[x"])
def test_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address of an endpoint"):
        Client(url)


def test_an_empty_file_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageError, match="the file is empty"):
        read_image(tmp_path / "empty.jpg")


def test_picture_too_large_for_a_request_is_made_smaller(tmp_path: Path) -> None:
    large = noise(tmp_path / "large.bmp", 1700)
    data, content_type, note = read_image(large)
    assert large.stat().st_size > wire.MAX_BODY_BYTES >= len(data)
    assert content_type == "image/jpeg"
    assert "1700x1700" in note
    small = noise(tmp_path / "small.bmp", 20)
    assert read_image(small) == (small.read_bytes(), "image/bmp", "")


def test_folders_are_walked_and_named_files_kept(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "b/notes.txt", "b/.hidden.png", "c/x/3.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "odd.dat", tmp_path])
    assert [path.name for path in found] == ["odd.dat", "1.png", "2.JPG", "3.webp"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="there are no images in"):
        find_images([tmp_path / "empty"])
