"""A search's facts, and its pictures: complete in themselves, the page's own, there however little was found."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from tests.report_folders import make_tuning

from image_classifier.report import gather_tuning, render, write_report
from image_classifier.report.search_facts import importance

SVG = "{http://www.w3.org/2000/svg}"


def trials(report: Path) -> int:
    """Trials drawn at a glance, the same in the page and in the picture."""
    in_page = report.read_text().count('<polyline class="trial')
    picture = Xml.parse(report.with_name("tuning.svg"))
    lines = [line for line in picture.iter(f"{SVG}polyline") if "trial" in line.get("class", "")]
    assert len(lines) == in_page
    return in_page


def write_search(folder: Path, columns: str, rows: list[str], *, best: int | None = None) -> Path:
    """A search's table as it is written at its end, and best.json when a trial was best."""
    folder.mkdir()
    table = [f"trial,status,{columns},best_epoch,epochs,seconds,failure,folder", *rows]
    (folder / "trials.csv").write_text("\n".join(table) + "\n")
    if best is not None:
        document = {"hyperparameters": {}, "value": 0.5, "epoch": 1, "trial": best}
        (folder / "best.json").write_text(json.dumps(document))
    return folder


def test_the_picture_holds_the_trials_of_the_page_and_needs_nothing_else(tmp_path: Path) -> None:
    folder = make_tuning(tmp_path / "tune-1")
    report = write_report(folder)
    with (folder / "trials.csv").open() as file:
        valued = [row for row in csv.DictReader(file) if row["validation:accuracy"]]
    assert trials(report) == len(valued)
    text = (folder / "tuning.svg").read_text()
    assert not re.search(r"var\(|href|url\(|@import|<script", text)
    root = Xml.fromstring(text)
    assert root.findtext(f"{SVG}title", "").startswith("tune-1: 16 trials, highest validation:accuracy")
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"


def test_every_class_of_the_picture_has_a_rule(tmp_path: Path) -> None:
    write_report(make_tuning(tmp_path / "tune-1"))
    root = Xml.parse(tmp_path / "tune-1" / "tuning.svg").getroot()
    rules = root.findtext(f"{SVG}style", "")
    used = {name for element in root.iter() for name in element.get("class", "").split()}
    laid_out_by_the_page, text_of_the_usual_size = {"chart", "wide"}, {"tick"}
    missing = {name for name in used if not re.search(rf"\.{name}\b", rules)}
    assert missing <= laid_out_by_the_page | text_of_the_usual_size


TINY = {
    "one trial": ("lr,validation:accuracy", ["1,Completed,0.01,0.5,1,1,3.0,,trials/001"], 1, 0),
    "all pruned": ("lr,validation:loss", [f"{n},Pruned,0.0{n},2.{n},1,1,3.0,,trials/00{n}" for n in (1, 2)], None, 2),
    "all failed": ("lr,validation:loss", ["1,Failed,0.01,,,0,3.0,out of memory,trials/001"], None, 0),
    "words only": ("optimizer,validation:accuracy", [f"{n},Completed,{w},0.{n},1,1,3.0,,trials/00{n}"
                                                     for n, w in ((1, "sgd"), (2, "adamw"), (3, "sgd"))], 3, 3),
    "nothing searched": ("validation:accuracy", [f"{n},Completed,0.5,1,1,3.0,,trials/00{n}" for n in (1, 2)], 1, 0),
    "no numbers": ("lr,validation:loss", ["1,Completed,0.01,nan,1,1,3.0,,trials/001",
                                          "2,Completed,nan,inf,1,1,3.0,,trials/002"], 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", TINY)
def test_a_search_that_found_little_has_its_page_and_picture(kind: str, tmp_path: Path) -> None:
    columns, rows, best, drawn = TINY[kind]
    folder = write_search(tmp_path / "tune-1", columns, rows, best=best)
    report = write_report(folder)
    assert report.read_text().rstrip().endswith("</html>")
    assert trials(report) == drawn


def test_an_epoch_without_a_number_leaves_a_gap(tmp_path: Path) -> None:
    row = "1,Completed,0.01,0.5,1,5,3.0,,trials/001"
    folder = write_search(tmp_path / "tune-1", "lr,validation:loss", [row], best=1)
    data = folder / "trials/001/output/data"
    data.mkdir(parents=True)
    values = ("2.0", "1.5", "NaN", "1.2", "0.5")
    lines_of_epochs = (f'{{"epoch": {epoch}, "validation:loss": {value}}}\n' for epoch, value in enumerate(values, 1))
    (data / "history.jsonl").write_text("".join(lines_of_epochs))
    write_report(folder)
    lines = [
        line
        for line in Xml.parse(folder / "tuning.svg").iter(f"{SVG}polyline")
        if (line.get("class") or "").startswith("line c1")
    ]
    assert [len((line.get("points") or "").split()) for line in lines] == [2, 2]


def test_tuning_facts_name_the_best_and_the_failed(tmp_path: Path) -> None:
    facts = gather_tuning(make_tuning(tmp_path / "tune-1"))
    assert facts["names"] == ["lr", "batch_size", "optimizer"]
    assert facts["maximize"] is True
    assert len(facts["trials"]) == 16
    assert "tune-1" in facts["next"][0]["title"]
    assert "See why trials failed" in [advice["title"] for advice in facts["next"]]
    assert len(facts["curves"]) == 15
    assert "</html>" in render(facts)


def test_the_hyperparameter_that_decides_is_told_from_one_that_does_not() -> None:
    trials = [{"values": {"lr": 10.0**-i, "seed": float(i * 7 % 5)}, "value": 0.9 - 0.05 * i} for i in range(12)]
    rows = importance(trials, ["seed", "lr"])
    assert rows is not None
    assert [row["name"] for row in rows] == ["lr", "seed"]
    assert rows[0]["share"] > 0.8
    assert rows[0]["p"] < 0.01
    assert rows[1]["p"] > 0.2


def test_a_handful_of_trials_ranks_nothing() -> None:
    assert importance([{"values": {"lr": 0.1}, "value": 0.5}] * 5, ["lr"]) is None


def test_equal_results_explain_nothing() -> None:
    rows = importance([{"values": {"lr": 0.1 * i}, "value": 0.5} for i in range(8)], ["lr"])
    assert rows == [{"name": "lr", "share": 0.0, "p": 1.0}]
