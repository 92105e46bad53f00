"""Labels that are likely wrong are found where the model can tell, and nobody is accused where it cannot."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.conftest import jpeg
from tests.head_training import CONFIG
from tests.unit.test_head_jobs import job

from image_classifier.contract.outputs import MAX_SUSPECTS, SUSPECTED_LABELS, read_suspects
from image_classifier.report import gather, render
from image_classifier.training import out_of_fold
from image_classifier.training.label_errors import judge
from image_classifier.training.out_of_fold import left_out
from image_classifier.vision.confident_learning import MIN_OF_A_CLASS, suspects
from image_classifier.vision.folders import Split


def clouds(classes: int, of_each: int, *, apart: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of images that lie around a point for each class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), of_each)
    points = random.normal(size=(classes, 40)) * apart
    return (points[labels] + random.normal(size=(len(labels), 40))).astype(np.float32), labels


def spoilt(labels: NDArray[np.int64], share: float, seed: int = 1) -> tuple[NDArray[np.int64], set[int]]:
    """Labels of which a share is wrong, and which these are."""
    random = np.random.default_rng(seed)
    wrong = random.choice(len(labels), round(share * len(labels)), replace=False)
    changed, classes = labels.copy(), labels.max() + 1
    changed[wrong] = (changed[wrong] + random.integers(1, classes, len(wrong))) % classes
    return changed, set(wrong.tolist())


def images_of(labels: NDArray[np.int64]) -> list[tuple[Split, int]]:
    paths = tuple(Path("train") / f"class-{label}" / f"{index}.jpg" for index, label in enumerate(labels.tolist()))
    split = Split("train", Path("train"), paths, tuple(labels.tolist()))
    return [(split, index) for index in range(len(labels))]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_planted_wrong_labels_are_found_and_few_others(share: float) -> None:
    features, labels = clouds(6, 60, apart=1.0)
    given, wrong = spoilt(labels, share)
    found = {each.index: each for each in suspects(left_out(features, given, 6), given)}
    right = found.keys() & wrong
    assert len(right) >= 0.9 * len(wrong)
    assert len(right) >= 0.9 * len(found)
    assert all(found[index].meant == labels[index] for index in right)
    margins = [each.margin for each in found.values()]
    assert margins == sorted(margins, reverse=True)


def test_all_cores_look_for_it_where_the_job_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(out_of_fold, "usual_threads", lambda: 2)
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: seen.append(torch.get_num_threads()) or eigh(matrix))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        left_out(*clouds(3, 12, apart=0.7), 3)
        assert (seen, torch.get_num_threads()) == ([2], 1)
    finally:
        torch.set_num_threads(before)


def test_the_left_out_answer_is_that_of_a_head_trained_without_the_image() -> None:
    features, labels = clouds(3, 12, apart=0.7)
    every = left_out(features, labels, 3)
    changed = labels.copy()
    changed[5] = 2
    again = left_out(features, changed, 3)
    # its own label has no part in it, but for ridge and temperature, which are chosen with all images
    assert np.abs(again[5] - every[5]).max() < 0.1
    assert again[5].argmax() == every[5].argmax()


@pytest.mark.parametrize("images", [30, 150], ids=["fewer images than features", "more"])
def test_both_ways_to_compute_it_agree_with_heads_that_are_trained(images: int) -> None:
    from image_classifier.training import out_of_fold

    features, labels = clouds(3, images // 3, apart=0.7, seed=2)
    ridges = out_of_fold.RIDGES
    rows = torch.from_numpy(features).double()
    rows = (rows - rows.mean(0)) / rows.std(0)
    values = torch.linalg.svdvals(rows).square()
    values = values[values > values.max() * 1e-6]
    targets = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).double()
    errors = {}
    votes = {}
    for ridge in ridges:
        answers = []
        for left in range(len(rows)):
            others = torch.arange(len(rows)) != left
            x = torch.cat([rows[others], torch.ones(len(rows) - 1, 1)], 1)
            penalty = torch.eye(41, dtype=torch.float64) * ridge * values.mean()
            penalty[-1, -1] = 0
            head = torch.linalg.solve(x.T @ x + penalty, x.T @ targets[others])
            answers.append(torch.cat([rows[left], torch.ones(1)]) @ head)
        votes[ridge] = torch.stack(answers)
        errors[ridge] = float((votes[ridge] - targets).square().mean())
    best = min(errors, key=errors.__getitem__)
    found = left_out(features, labels, 3)
    assert (found.argmax(1) == votes[best].argmax(1).numpy()).mean() > 0.98


@pytest.mark.parametrize(
    ("features", "labels", "reason"),
    [
        (*clouds(4, 30, apart=0.0), "not shown to be better than guessing"),
        (*clouds(2, 9, apart=3.0), "only 18 images could be judged"),
        (*clouds(8, 40, apart=0.18), "of the labels, 60% are needed"),
    ],
    ids=["guessing", "few images", "weak"],
)
def test_who_cannot_tell_accuses_nobody(features: NDArray[np.float32], labels: NDArray[np.int64], reason: str) -> None:
    found = judge(images_of(labels), left_out(features, labels, int(labels.max()) + 1), labels, list("abcdefgh"))
    assert reason in found["silent"]
    assert (found["count"], found["suspects"]) == (0, [])


def test_a_class_of_few_images_accuses_nobody_and_odd_rows_do_no_harm() -> None:
    features, labels = clouds(3, 40, apart=2.0)
    few = np.full(MIN_OF_A_CLASS - 1, 3)
    rows = np.concatenate([features, features[: len(few)]])
    probabilities = left_out(rows, np.concatenate([labels, few]), 4)
    found = suspects(probabilities, np.concatenate([labels, few]))
    assert not {3} & {each.given for each in found} | {each.meant for each in found if each.meant == 3}
    broken = probabilities.copy()
    broken[7] = np.nan
    assert 7 not in {each.index for each in suspects(broken, np.concatenate([labels, few]))}


def test_features_that_are_no_numbers_or_all_the_same_accuse_nobody() -> None:
    features, labels = clouds(3, 40, apart=2.0)
    for odd in (np.where(features > 2, np.inf, features), np.zeros_like(features)):
        found = judge(images_of(labels), left_out(odd.astype(np.float32), labels, 3), labels, ["a", "b", "c"])
        assert "better than guessing" in found["silent"]


def test_only_the_clearest_of_very_many_are_named() -> None:
    features, labels = clouds(2, 4000, apart=2.0)
    given, wrong = spoilt(labels, 0.2)
    found = judge(images_of(given), left_out(features, given, 2), given, ["class-0", "class-1"])
    assert found["count"] >= 0.9 * len(wrong)
    assert len(found["suspects"]) == MAX_SUSPECTS
    assert json.loads(json.dumps(found)) == found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job on classes that are told apart by brightness alone, with one wrong label, of a hostile name."""
    place = tmp_path_factory.mktemp("labels")
    for split, count in (("train", 12), ("valid", 6)):
        for label in range(2):
            folder = place / "data" / split / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(shade(label, 50 * label + number + 100 * len(split)))
    wrong = place / "data" / "train" / "class-0" / "<b>wrong.jpg"
    wrong.write_bytes(shade(1, 999))
    return job(place / "job", place / "data", dataclasses.replace(CONFIG, epochs=2, feature_views=1)).base


def shade(label: int, seed: int) -> bytes:
    """A picture that is dark or bright."""
    import io

    from PIL import Image

    picture = Image.open(io.BytesIO(jpeg(seed))).point(lambda level: level * 0.35 + 150 * label)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_a_training_names_the_wrong_label_and_the_report_shows_it(trained: Path) -> None:
    found = read_suspects(trained / "output" / "data")
    assert found is not None
    assert (found["images"], found["method"], found["silent"]) == (37, "left out", "")
    assert found["suspects"][0]["path"] == "train/class-0/<b>wrong.jpg"
    assert (found["suspects"][0]["label"], found["suspects"][0]["meant"]) == ("class-0", "class-1")
    facts = gather(trained)
    page = render(facts)
    assert f"{found['count']} label" in page
    assert "<b>wrong" not in page
    assert "&lt;b&gt;wrong.jpg" in page
    assert facts["labels"]["suspects"][0]["thumbnail"].startswith("data:image/jpeg;base64,")


@pytest.mark.parametrize(
    "damage",
    [None, [], {"suspects": 3}, {"suspects": [{}], "images": "x"}, {"suspects": [1, {"path": "../../../etc/passwd"}]}],
)
def test_a_damaged_file_of_suspects_is_no_file(trained: Path, tmp_path: Path, damage: object) -> None:
    shutil.copytree(trained / "output", tmp_path / "output", symlinks=True)
    folder = tmp_path / "output" / "data"
    SUSPECTED_LABELS.write(folder, damage)
    assert read_suspects(folder) is None
    assert "Labels were not judged" in render(gather(tmp_path))


def test_no_picture_from_outside_of_the_data_gets_onto_the_page(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "job", symlinks=True)
    (tmp_path / "job" / "input" / "secret.jpg").write_bytes(jpeg(1))
    folder = tmp_path / "job" / "output" / "data"
    found = SUSPECTED_LABELS.read_object(folder)
    found["suspects"][0]["path"] = "../secret.jpg"
    SUSPECTED_LABELS.write(folder, found)
    assert gather(tmp_path / "job")["labels"]["suspects"][0]["thumbnail"] is None
