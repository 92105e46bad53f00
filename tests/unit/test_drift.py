"""The drift watch: what departs from the validation images is told of, and what does not is not."""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.unit.test_artifact import edit_manifest, write

from image_classifier.contract.errors import ArtifactError
from image_classifier.serving.drift_watch import MIN_ANSWERS, DriftWatch
from image_classifier.serving.meters import Meters
from image_classifier.serving.scratch import Scratch
from image_classifier.serving.sightings import SLOTS, SightingReader, SightingWriter
from image_classifier.vision.artifact import load_model, pack, unpack
from image_classifier.vision.drift import STATISTICS, Histogram, picture_statistics, reference_of, sample

CLASSES = 5
Sight = tuple[NDArray[np.uint8], NDArray[np.float64]]


def usual(rng: np.random.Generator) -> Sight:
    """A picture of some brightness and contrast, and an answer of some confidence, as from a validation set."""
    levels = rng.normal(rng.uniform(90, 160), rng.uniform(25, 60), (48, 48, 3))
    confidence = rng.uniform(0.4, 1.0)
    probabilities = np.full(CLASSES, (1 - confidence) / (CLASSES - 1))
    probabilities[rng.integers(CLASSES)] = confidence
    return np.clip(levels, 0, 255).astype(np.uint8), probabilities


def dark(rng: np.random.Generator) -> Sight:
    pixels, probabilities = usual(rng)
    return pixels // 4, probabilities


def one_class(rng: np.random.Generator) -> Sight:
    pixels, probabilities = usual(rng)
    probabilities[[0, probabilities.argmax()]] = probabilities[[probabilities.argmax(), 0]]
    return pixels, probabilities


def unsure(rng: np.random.Generator) -> Sight:
    pixels, probabilities = usual(rng)
    return pixels, (probabilities + 2 / CLASSES) / 3


def statistics_of(sights: list[Sight]) -> NDArray[np.float64]:
    answers = np.array([(probabilities.argmax(), probabilities.max()) for _, probabilities in sights], np.float64)
    return np.concatenate([answers, picture_statistics(sample(np.stack([pixels for pixels, _ in sights])))], axis=1)


def reference(photos: int = 100, seed: int = 0) -> dict[str, Histogram]:
    rng = np.random.default_rng(seed)
    return reference_of(statistics_of([usual(rng) for _ in range(photos)]))


class Worker:
    """A process that answers and notes it, as a forked worker does."""

    def __init__(self, scratch: Scratch) -> None:
        self._lines, theirs = multiprocessing.get_context("fork").Pipe()
        self.process = os.fork()
        if not self.process:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            writer = SightingWriter(scratch.ring)
            while True:
                for each in theirs.recv():
                    writer.write(*each)
                theirs.send("done")

    def answer(self, sights: list[Sight]) -> None:
        self._lines.send(sights)
        assert self._lines.recv() == "done"

    def end(self) -> None:
        os.kill(self.process, signal.SIGTERM)
        os.waitpid(self.process, 0)


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    made = Scratch(tmp_path / "scratch")
    made.root.mkdir()
    made.create()
    return made


@pytest.fixture
def workers(scratch: Scratch) -> Iterator[list[Worker]]:
    made = [Worker(scratch) for _ in range(3)]
    yield made
    for worker in made:
        worker.end()


def ask(workers: list[Worker], watch: DriftWatch, kind: Callable[[np.random.Generator], Sight], seed: int) -> None:
    """A look's worth of answers, by all workers, read as often as the server program does."""
    rng = np.random.default_rng(seed)
    for start in range(0, MIN_ANSWERS, 40):
        workers[start // 40 % len(workers)].answer([kind(rng) for _ in range(40)])
        watch.read()


@pytest.mark.parametrize("photos", [20, 100, 400])
def test_healthy_answers_raise_no_alarm(
    photos: int, scratch: Scratch, workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    watch = DriftWatch(scratch, reference(photos), look_s=0)
    for seed in range(1, 6):
        ask(workers, watch, usual, seed)
        assert watch.num_answers == seed * MIN_ANSWERS
        assert not any(each.is_one for each in watch.found.values())
    assert watch.found.keys() == set(STATISTICS)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("kind", "departed"),
    [(dark, "mean_red"), (dark, "contrast_blue"), (one_class, "top1"), (unsure, "confidence")],
)
@pytest.mark.parametrize("photos", [20, 400])
def test_departed_answers_are_told_of_in_one_line(
    kind: Callable[[np.random.Generator], Sight],
    departed: str,
    photos: int,
    scratch: Scratch,
    workers: list[Worker],
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = DriftWatch(scratch, reference(photos), look_s=0)
    for seed in (1, 2):
        ask(workers, watch, kind, seed)
        assert watch.found[departed].is_one
    (record,) = caplog.records  # said once, though it goes on
    assert record.levelno == logging.WARNING
    assert f"the last {MIN_ANSWERS} answers depart from the model's validation images" in record.message
    assert departed in record.message
    assert ("top1" in record.message) == (kind is one_class)
    ask(workers, watch, usual, 3)
    assert "like the model's validation images again" in caplog.records[-1].message


def test_nothing_is_said_of_few_answers_nor_of_those_before_the_beginning(scratch: Scratch, workers: list[Worker]):
    watch = DriftWatch(scratch, reference(), look_s=0)
    rng = np.random.default_rng(1)
    workers[0].answer([dark(rng) for _ in range(100)])
    watch.begin()
    workers[1].answer([dark(rng) for _ in range(100)])
    workers[2].answer([dark(rng) for _ in range(99)])
    watch.read()
    assert (watch.found, watch.num_answers) == ({}, 0)
    workers[0].answer([dark(rng)])
    watch.read()
    assert watch.num_answers == MIN_ANSWERS


def test_a_busy_endpoint_is_looked_at_once_in_a_while_and_then_at_all_of_it(scratch: Scratch, workers: list[Worker]):
    watch = DriftWatch(scratch, reference(), look_s=3600)
    for seed in range(3):
        ask(workers, watch, usual, seed)
    assert watch.num_answers == MIN_ANSWERS


def test_a_model_without_reference_is_not_watched(scratch: Scratch, workers: list[Worker]) -> None:
    watch = DriftWatch(scratch, {}, look_s=0)
    ask(workers, watch, dark, 1)
    assert (watch.found, watch.num_answers) == ({}, 0)


def test_a_watch_that_fails_is_over_and_says_so_and_nothing_else_is(
    scratch: Scratch, workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    watch = DriftWatch(scratch, reference(), look_s=0)
    (scratch.ring.parent / "not a process").touch()
    for _ in range(3):
        watch.read()
    (record,) = caplog.records
    assert record.message == "drift: the watch failed and is over"


def test_a_worker_that_ended_is_forgotten_and_a_new_one_is_found(scratch: Scratch, workers: list[Worker]) -> None:
    watch = DriftWatch(scratch, reference(), look_s=0)
    rng = np.random.default_rng(1)
    workers[0].answer([usual(rng) for _ in range(100)])
    watch.read()
    gone = workers.pop(0)
    gone.end()
    scratch.forget(gone.process)
    watch.read()
    workers.append(Worker(scratch))
    workers[-1].answer([usual(rng) for _ in range(100)])
    watch.read()
    assert watch.num_answers == MIN_ANSWERS


def test_what_the_reader_is_too_late_for_is_lost_and_the_rest_is_whole(tmp_path: Path) -> None:
    writer, reader = SightingWriter(tmp_path / "ring"), SightingReader(tmp_path / "ring")
    for number in range(3 * SLOTS):
        writer.write(np.full((40, 40, 3), number % 256, np.uint8), np.eye(3 * SLOTS)[number])
    rows = reader.read()
    assert rows[:, 0].tolist() == list(range(2 * SLOTS + 1, 3 * SLOTS))  # the oldest may be under the writer's pen
    assert rows[:, 2].tolist() == [number % 256 for number in range(2 * SLOTS + 1, 3 * SLOTS)]
    assert len(reader.read()) == 0


@pytest.mark.parametrize("size", [1, 16, 31, 224])
def test_the_grid_tells_mean_and_contrast_of_a_picture_of_any_size(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8)
    found = picture_statistics(sample(pixels))[0]
    flat = pixels[0].reshape(-1, 3)
    assert found == pytest.approx([*flat.mean(0), *flat.std(0)], abs=0 if size in {1, 16} else 12)


@pytest.mark.parametrize(
    "values",
    [np.ones(20), np.repeat([0.0, 1.0], 50), np.arange(1000) % 133, np.r_[np.zeros(399), 1.0]],
    ids=["all the same", "two values", "133 classes", "one odd one"],
)
def test_any_values_make_a_histogram_that_they_do_not_depart_from_and_others_do(values: NDArray[np.float64]) -> None:
    known = Histogram.of(values.astype(np.float64))
    assert sum(known.counts) == len(values)
    assert known.stability_index(values) == pytest.approx(0, abs=1e-9)
    for others in (values + 500, values - 500):
        assert known.stability_index(others) > known.limit(len(values)) or len(values) == 20
    assert known.stability_index(np.full(200, 500.0)) > known.limit(200)
    assert known.stability_index(np.full(200, -500.0)) > known.limit(200)


def test_few_photographs_and_those_without_numbers_make_no_reference() -> None:
    rows = np.random.default_rng(0).random((20, len(STATISTICS)))
    assert reference_of(rows[:19]) == {}
    assert reference_of(rows).keys() == set(STATISTICS)
    rows[3, 1] = np.nan
    assert reference_of(rows) == {}


def test_the_reference_travels_with_the_model_and_older_models_have_none(tmp_path: Path) -> None:
    write(tmp_path / "old")
    assert load_model(tmp_path / "old").manifest.reference == {}
    known = reference()
    write(tmp_path / "model", reference=known)
    pack(tmp_path / "model", tmp_path / "model.tar.gz")
    found = unpack(tmp_path / "model.tar.gz", tmp_path / "again").manifest
    assert found.reference == known
    assert "reference" not in load_model(tmp_path / "old").manifest.to_json()


@pytest.mark.parametrize(
    "histogram",
    [
        {"edges": [1.0], "counts": [30]},
        {"edges": [2.0, 1.0], "counts": [10, 10, 10]},
        {"edges": [1.0], "counts": [10, -10]},
        {"edges": [1.0], "counts": [10, 10.5]},
        {"edges": [1.0], "counts": [3, 4]},
        {"edges": [1.0], "counts": [10, 10**400]},
        {"edges": [float("1e400")], "counts": [10, 20]},
        {"edges": [1.0]},
        {"edges": "x", "counts": 3},
        [],
        None,
    ],
    ids=str,
)
def test_a_reference_that_is_none_is_refused(tmp_path: Path, histogram: object) -> None:
    write(tmp_path, reference=reference())
    edit_manifest(tmp_path, lambda values: values["reference"].update(top1=histogram))
    with pytest.raises(ArtifactError):
        load_model(tmp_path)


def test_a_reference_of_other_statistics_is_refused(tmp_path: Path) -> None:
    write(tmp_path, reference=reference())
    edit_manifest(tmp_path, lambda values: values["reference"].pop("top1"))
    with pytest.raises(ArtifactError, match="other statistics"):
        load_model(tmp_path)


def test_meters_show_the_latest_look(scratch: Scratch, workers: list[Worker]) -> None:
    meters = Meters(num_alive=lambda: 1, num_under_way=lambda: 0, num_connections=lambda: 0)
    watch = DriftWatch(scratch, reference(), look_s=0)
    meters.watch_drift(lambda: watch.found, lambda: watch.num_answers)
    assert b"classifier_drift_answers_total 0.0" in meters.text()
    ask(workers, watch, one_class, 1)
    text = meters.text().decode()
    assert f"classifier_drift_answers_total {float(MIN_ANSWERS)}" in text
    assert 'classifier_drift_departed{statistic="top1"} 1.0' in text
    assert 'classifier_drift_departed{statistic="mean_red"} 0.0' in text
    assert 'classifier_drift_index{statistic="contrast_blue"}' in text


def test_a_histogram_is_what_json_makes_of_it() -> None:
    known = reference()["confidence"]
    assert Histogram.from_json(json.loads(json.dumps(dataclasses.asdict(known)))) == known
