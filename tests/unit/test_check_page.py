"""check.html: one file that asks for nothing, shows pictures within bounds, and has no markup but ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from image_classifier.cli.main import main
from image_classifier.report import check_page
from image_classifier.report.check_page import render_check
from image_classifier.vision.check import CheckReport, check_dataset
from image_classifier.vision.findings import DataFinding
from image_classifier.vision.sample_data import make_sample_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    make_sample_data(root, num_classes=2, train_per_class=12, valid_per_class=2, test_per_class=2, size=64)
    return root


def thumbnails(page: str) -> list[str]:
    return re.findall(r'<img src="(data:image/jpeg;base64,[^"]*)"', page)


def test_the_page_shows_what_the_console_says(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = data / "train" / "bricks" / "bricks_0000.jpg"
    Image.open(first).save(data / "test" / "bricks" / "again.jpg", quality=60)
    page = tmp_path / "somewhere" / "check.html"
    assert main(["check", str(data), "--html", str(page)]) == 0
    assert f"page: {page}" in capsys.readouterr().err
    text = page.read_text()
    assert "pictures that look alike are in train and test" in text
    assert len(thumbnails(text)) == 2
    first.write_bytes(b"no picture")
    assert main(["check", str(data), "--html", str(page), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert "Not fit for training: 1 error" in page.read_text()


def test_a_page_that_cannot_be_written_is_an_error(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), "--html", str(data)]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_names_become_no_markup_and_turn_no_text(data: Path) -> None:
    names = ("<img src=x onerror=alert(1)>.jpg", "a\u202egpj.exe.jpg", '"><script>1<', "&amp;.jpg")
    for name in names:
        source = data / "train" / "bricks" / "bricks_0000.jpg"
        (data / "train" / "leaves" / f"{name.replace('/', '')}.jpg").write_bytes(source.read_bytes())
    page = render_check(check_dataset(data), data)
    assert "<img src=x" not in page
    assert page.count("<script>") == 1
    assert "\u202e" not in page
    assert "\\u202egpj" in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src &#x27;none&#x27;; img-src data:;")
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def report_with(findings: tuple[DataFinding, ...]) -> CheckReport:
    return CheckReport(
        root="data",
        classes=("bricks", "leaves"),
        counts={"train": {"bricks": 1, "leaves": 1}},
        valid_split_off=False,
        smallest=None,
        largest=None,
        fingerprint="0" * 64,
        errors=(),
        warnings=findings,
    )


def test_pictures_are_bounded_in_number_and_bytes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tuple(str(path.relative_to(data)) for path in sorted((data / "train").rglob("*.jpg")))
    findings = tuple(DataFinding(kind="dark", message="dark pictures", files=files) for _ in range(3))
    assert len(set(thumbnails(render_check(report_with(findings), data)))) == check_page.PICTURES_A_FINDING
    monkeypatch.setattr(check_page, "MAX_THUMBNAILS", 5)
    assert len(set(thumbnails(render_check(report_with(findings), data)))) == 5
    size = len(thumbnails(render_check(report_with(findings), data))[0])
    monkeypatch.setattr(check_page, "MAX_THUMBNAIL_BYTES", 3 * size)
    shown = thumbnails(render_check(report_with(findings[:1]), data))
    assert 0 < sum(map(len, shown)) <= 3 * size


def test_a_thousand_findings_and_missing_files_make_a_short_page(data: Path) -> None:
    findings = tuple(
        DataFinding(kind="lookalike", message="look alike", hint="keep one", files=(f"no/{i}.jpg", "gone.jpg"))
        for i in range(1000)
    )
    page = render_check(report_with((*findings, DataFinding(kind="dark", message="dark", files=("x",) * 5000))), data)
    assert thumbnails(page) == []
    assert "960 more like these" in page
    assert "4800 more" in page
    assert len(page) < 200_000
