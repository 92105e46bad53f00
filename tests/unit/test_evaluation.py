"""`evaluate` and `predict`: what answers are worth, and that they are written as they come."""

from __future__ import annotations

import csv
import io
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classifier.cli.main import main
from image_classifier.contract.outputs import CONFUSION, PER_CLASS, TEST_PREDICTIONS
from image_classifier.vision.data_set import labelled_images

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 40), "red": (220, 40, 40)}


def picture(red: int, green: int, blue: int) -> bytes:
    file = io.BytesIO()
    pixels = np.full((40, 40, 3), (red, green, blue), np.uint8)
    pixels[:20] //= 2
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def url() -> Iterator[str]:
    """An endpoint that names the strongest colour, with probability 0.7, and the others with 0.2 and 0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).mean((0, 1))
                status = 200
                order = sorted(zip(pixels, ("red", "green", "blue"), strict=True), reverse=True)
                ranked = [
                    {"label": name, "probability": p} for (_, name), p in zip(order, (0.7, 0.2, 0.1), strict=True)
                ]
                document: dict[str, object] = {"predictions": ranked[: int(self.headers["X-Top-K"])], "model": "m"}
            except OSError:
                status, document = 400, {"error": "the file is not an image", "hint": ""}
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes of four pictures in test; one of red is blue, and train has what nobody should ask about."""
    root = tmp_path / "data"
    for label, (red, green, blue) in COLOURS.items():
        for split, count in (("test", 4), ("train", 2)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(picture(red + number, green, blue))
    (root / "test" / "red" / "3.png").write_bytes(picture(*COLOURS["blue"]))
    return root


def test_answers_are_held_against_the_labels(url: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(data), url, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["what"], found["images"], found["model"], found["url"]) == ("test", 12, "m", url)
    assert found["classes"] == ["blue", "green", "red"]
    assert found["confusion"] == [[4, 0, 0], [0, 4, 0], [1, 0, 3]]
    metrics = found["metrics"]
    assert metrics["accuracy"] == pytest.approx(11 / 12)
    assert metrics["top5_accuracy"] == 1.0
    assert metrics["balanced_accuracy"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert metrics["macro_f1"] == pytest.approx((8 / 9 + 1 + 6 / 7) / 3)
    given_to_wrong_one = 0.1  # blue has most, then green
    assert metrics["loss"] == pytest.approx(-(11 * math.log(0.7) + math.log(given_to_wrong_one)) / 12)
    assert metrics["calibration_error"] == pytest.approx(11 / 12 - 0.7)
    low, high = found["accuracy_interval"]
    assert low < 11 / 12 < high < 1


def test_tables_are_printed_and_kept_as_a_training_keeps_them(
    url: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", str(data), url, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy\t0.9167 (95 % interval " in printed
    assert "red\tblue\t1" in printed
    assert PER_CLASS.read(out)[2] == ["red", "4", "1.0000", "0.7500", "0.8571"]
    assert CONFUSION.read(out)[2] == ["red", "1", "0", "3"]
    assert ["red/3.png", "red", "blue", "0.700000"] in TEST_PREDICTIONS.read(out)


def test_a_file_without_an_answer_is_counted_and_ends_with_1(
    url: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "test" / "red" / "2.png").write_bytes(b"text")
    assert main(["evaluate", str(data), url, "--json"]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["failed"] == {"red/2.png": "the file is not an image"}
    assert "1 of 12 images could not be classified" in said.err


def test_a_label_that_the_model_does_not_know_is_named(
    url: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "test" / "red").rename(data / "test" / "rouge")
    assert main(["evaluate", str(data), url]) == 1
    said = capsys.readouterr().err
    assert "error: the model does not know rouge" in said
    assert "hint: it knows blue, green, red" in said


def test_what_is_asked_about_is_test_then_valid_then_all(data: Path) -> None:
    assert labelled_images(data).what == "test"
    assert labelled_images(data / "test").what == "all"
    assert len(labelled_images(data / "test").files) == 12
    (data / "test").rename(data / "val")
    assert labelled_images(data).what == "valid"
    listed = data / "list.csv"
    listed.write_text("path,label,split\nval/red/0.png,red,train\nval/blue/0.png,blue,val\n")
    found = labelled_images(listed)
    assert (found.what, found.labels, [path.name for path in found.files]) == ("valid", ("blue",), ["0.png"])


@pytest.mark.parametrize("where", ["no-such-run", "ftp://somewhere"])
def test_nobody_to_ask_is_said_in_a_sentence(
    where: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--runs-dir", str(tmp_path / "runs"), "evaluate", str(data), where]) == 2
    said = capsys.readouterr().err
    assert "error: " in said
    assert "hint: " in said


def test_predict_prints_a_line_of_json_an_image(url: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "test" / "red" / "3.png").write_bytes(b"text")
    assert main(["predict", str(data / "test" / "red"), "--url", url, "--json", "--top-k", "2"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(each["file"]).name for each in answers] == ["0.png", "1.png", "2.png", "3.png"]
    assert [each["label"] for each in answers[0]["predictions"]] == ["red", "green"]
    assert answers[3]["error"] == "the file is not an image"


def test_predict_writes_a_table_that_a_spreadsheet_reads(
    url: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "test" / "red" / "3.png").write_bytes(b"text")
    file = tmp_path / "answers.csv"
    command = ["predict", str(data / "test" / "red"), "--url", url, "--top-k", "2"]
    assert main([*command, "--csv", str(file)]) == 1
    assert capsys.readouterr().out == ""
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["file", "label", "probability", "label_2", "probability_2", "error"]
    assert (rows[0]["label"], float(rows[0]["probability"]), rows[0]["label_2"]) == ("red", 0.7, "green")
    assert (rows[3]["label"], rows[3]["error"]) == ("", "the file is not an image")
    assert main([*command, "--csv", str(tmp_path / "nowhere" / "a.csv")]) == 1
    assert "error: cannot write " in capsys.readouterr().err
    assert main([*command, "--csv", str(file), "--json"]) == 2
