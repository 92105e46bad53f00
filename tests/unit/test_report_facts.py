"""What a report says is what the job's files say; what they do not say is named as missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.report_folders import CLASSES, CONFIG, make_job

from image_classifier.contract.errors import DataError
from image_classifier.contract.metrics import METRIC_BY_NAME
from image_classifier.contract.outputs import (
    BAD_IMAGES,
    CONFUSION,
    DATASET,
    HISTORY,
    PER_CLASS,
    REPORT,
    RESULT,
    RULES,
    SETUP,
    STATISTICS,
    STEPS,
    TEST_PREDICTIONS,
)
from image_classifier.debugging.measures import launch_share
from image_classifier.debugging.rules.base import Aspect, Rule, insufficient
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, StepRecord
from image_classifier.report import advice, gather, render, write_report
from image_classifier.report.advice import what_next
from image_classifier.report.curves import step_time
from image_classifier.report.facts import to_text
from image_classifier.report.results import SPLIT_NAMES
from image_classifier.vision import network
from image_classifier.vision.confidence import exact_interval

PARTS = [part.name for part in (HISTORY, RESULT, STEPS, STATISTICS, RULES, CONFUSION, SETUP)]
MORE_PARTS = [part.name for part in (PER_CLASS, TEST_PREDICTIONS, BAD_IMAGES, REPORT, DATASET)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job. Shared: do not change it."""
    return make_job(tmp_path_factory.mktemp("job") / "train-1")


@pytest.fixture(scope="module")
def small_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `job`, with less in it. Shared: do not change it."""
    return make_job(tmp_path_factory.mktemp("small") / "train-1", epochs=3, test_per_class=8)


@pytest.fixture
def own_job(small_job: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(small_job, tmp_path / "train-1", symlinks=True)


def test_a_complete_job_misses_nothing_and_fits_strict_json(job: Path) -> None:
    facts = gather(job)
    assert facts["missing"] == []
    assert json.loads(to_text(facts)) == facts


def test_outcome_is_the_test_accuracy_with_its_interval(job: Path) -> None:
    outcome = gather(job)["outcome"]
    metrics = json.loads((job / "output/data/metrics.json").read_text())["metrics"]
    accuracy = outcome["accuracy"]
    assert (outcome["status"], accuracy["split"]) == ("completed", "test")
    assert accuracy["value"] == pytest.approx(metrics["test:accuracy"], abs=1e-5)
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]


def test_interval_of_eight_hits_in_ten() -> None:
    # scipy's beta.ppf, as statsmodels' proportion_confint(method="beta") computes it
    assert exact_interval(8, 10) == pytest.approx((0.443905, 0.974789), abs=1e-6)


def test_confused_pairs_and_mistakes_come_from_the_answers(job: Path) -> None:
    facts = gather(job)
    first = facts["confusion"]["pairs"][0]
    assert (first["true"], first["predicted"]) == (CLASSES[1], CLASSES[2])
    assert all(path.startswith(CLASSES[1]) for path in first["examples"])
    chances = [row["probability"] for row in facts["mistakes"]]
    assert chances == sorted(chances, reverse=True)
    assert all(row["true"] != row["predicted"] for row in facts["mistakes"])
    assert facts["thumbnails"][first["examples"][0]].startswith("data:image/jpeg;base64,")


def test_layers_keep_the_order_of_the_network(job: Path) -> None:
    layers = gather(job)["layers"]
    assert layers["gradients"]["layers"] == list(network.layers())
    assert len(layers["gradients"]["values"]) == len(layers["gradients"]["layers"]) == len(layers["table"])


def test_batch_noise_lies_around_the_mean(job: Path) -> None:
    batches = gather(job)["batches"]
    assert batches["epoch"][-1] <= CONFIG.epochs
    assert all(
        low <= mean <= high for low, mean, high in zip(batches["p10"], batches["mean"], batches["p90"], strict=True)
    )


def test_timeline_names_what_the_job_did_meanwhile(job: Path) -> None:
    system = gather(job)["system"]
    assert {"CPU, mean of the cores", "GPU", "GPU memory", "memory", "waiting for disk"} == set(system["series"])
    assert [span["mode"] for span in system["spans"][:3]] == ["train", "eval", "train"]
    assert system["spans"][-1]["mode"] == "test"


def test_the_table_of_epochs_has_every_metric_that_was_reported(own_job: Path) -> None:
    reported = HISTORY.read(own_job / "output/data")[0]
    page = render(gather(own_job))
    for name in METRIC_BY_NAME:
        split, _, quantity = name.partition(":")
        header = f"{SPLIT_NAMES[split]} {quantity}".replace("_", " ")
        assert (f">{header}</th>" in page) == (name in reported), name


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_there_is_named_and_the_rest_is_told(own_job: Path, part: str) -> None:
    (own_job / "output/data" / part).unlink()
    facts = gather(own_job)
    assert any(sentence.startswith(part) for sentence in facts["missing"])
    assert facts["dataset"]["classes"] == sorted(CLASSES)
    assert "</html>" in render(facts)


@pytest.mark.parametrize("part", [*PARTS, *MORE_PARTS])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe[1, 2", b'{"a": 1}\n', b"a,b\n1,2\n"])
def test_a_damaged_part_spoils_no_report(own_job: Path, part: str, content: bytes) -> None:
    (own_job / "output/data" / part).write_bytes(content)
    assert "</html>" in render(gather(own_job))


def test_the_data_are_those_that_the_job_found(own_job: Path) -> None:
    """Also where the channels have other images now, or are gone."""
    before = gather(own_job)["dataset"]
    DATASET.write(own_job / "output/data", before)
    (path,) = list((own_job / "input/data/train").rglob("*.jpg"))[:1]
    path.unlink()
    assert gather(own_job)["dataset"] == before
    (own_job / "output/data" / DATASET.name).unlink()
    assert gather(own_job)["dataset"]["fingerprint"] != before["fingerprint"]


@pytest.mark.parametrize("error", [OSError, EOFError, RuntimeError, Image.DecompressionBombError])
def test_whatever_a_header_makes_pillow_raise_only_its_size_is_missing(
    own_job: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    before = gather(own_job)["dataset"]["sizes"]["sample"]
    (path,) = list((own_job / "input/data/train").rglob("*.jpg"))[:1]
    opened = Image.open

    def fails(file: Any, **settings: Any) -> Any:
        if file == path:
            raise error("not this one")
        return opened(file, **settings)

    monkeypatch.setattr(Image, "open", fails)
    assert gather(own_job)["dataset"]["sizes"]["sample"] == before - 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": "daisy"},
        {"classes": [1]},
        {"counts": {"train": 3}},
        {"counts": {"train": {"daisy": "3"}}},
        {"fingerprint": None},
        {"valid_split_off": 0},
        {"sizes": []},
        {"sizes": {"sample": 3}},
    ],
    ids=str,
)
def test_of_damaged_data_facts_nothing_is_taken(own_job: Path, wrong: dict[str, object]) -> None:
    before = gather(own_job)["dataset"]
    DATASET.write(own_job / "output/data", before | wrong)
    assert gather(own_job)["dataset"] == before


def test_only_a_history_makes_a_report(tmp_path: Path) -> None:
    row = {"epoch": 1, "train:loss": 1.0, "train:accuracy": 0.5, "validation:loss": 1.1, "validation:accuracy": 0.4}
    (tmp_path / "history.jsonl").write_text(json.dumps(row) + "\n")
    facts = gather(tmp_path)
    assert facts["outcome"]["status"] == "unfinished"
    assert facts["outcome"]["accuracy"]["value"] == 0.4
    assert facts["time"] is None
    assert len(facts["missing"]) >= 6
    assert "</html>" in render(facts)


def test_a_failed_job_says_why_first(own_job: Path) -> None:
    (own_job / "output/data/metrics.json").unlink()
    rules = (own_job / "output/data/rules.json").read_text()
    (own_job / "output/data/rules.json").write_text(rules.replace("Set workers=8", "Lower lr to 0.1"))
    (own_job / "output/failure").write_text("the training loss became nan in epoch 2\nhint: lower lr (it was 0.5)")
    facts = gather(own_job)
    assert facts["outcome"]["status"] == "failed"
    assert facts["next"][0]["title"] == "Lower lr (it was 0.5)"
    assert sum(item["title"].startswith("Lower lr") for item in facts["next"]) == 1
    assert "the training loss became nan in epoch 2" in facts["next"][0]["reason"]


def test_losses_that_are_not_finite_stay_strict_json(own_job: Path) -> None:
    path = own_job / "output/data/steps.jsonl"
    path.write_text(path.read_text().replace('"clean_loss": 2.', '"clean_loss": NaN, "loss": 2.'))
    facts = gather(own_job)
    assert "NaN" in facts["batches"]["mean"]
    assert "</html>" in render(json.loads(to_text(facts)))


def test_made_again_without_images_the_first_report_lends_what_it_saw(job: Path, tmp_path: Path) -> None:
    first = shutil.copytree(job, tmp_path / "first")
    write_report(first)
    downloaded = shutil.copytree(first / "output/data", tmp_path / "downloaded")
    before, after = gather(first), gather(downloaded)
    for part in before.keys() - {"created"}:
        assert after[part] == before[part], part
    assert after["missing"] == []


def test_no_picture_is_taken_from_outside_the_test_folder(own_job: Path) -> None:
    secret = own_job / "input/data/secret.jpg"
    shutil.copy(next((own_job / "input/data/test").glob("*/*.jpg")), secret)
    path = own_job / "output/data/test_predictions.csv"
    path.write_text(f"path,label,predicted,probability\n../secret.jpg,iris,rose,0.9\n{secret},iris,rose,0.8\n")
    assert gather(own_job)["thumbnails"] == {}


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no output of a training job"):
        write_report(tmp_path)


def _run(seconds: float | None = None, *, steps: int = 10, **phases: float) -> RunData:
    """Steps of so many seconds, without which they take what their phases do."""
    run, seconds = RunData(JobFacts(config={})), sum(phases.values()) if seconds is None else seconds
    for i in range(steps):
        run.add_step(
            StepRecord(
                step=i, epoch=1, mode="train", time=1 + i, seconds=seconds, images=8, loss=1, clean_loss=1, **phases
            )
        )
    return run


def test_gain_is_what_remains_without_the_bottleneck() -> None:
    found = step_time(_run(data_wait_s=0.4, forward_s=0.1, backward_s=0.2), None)
    assert found is not None
    assert found["bottleneck"]["phase"] == "data_wait_s"
    assert found["bottleneck"]["gain"] == pytest.approx(0.4 / 0.3)
    assert found["bottleneck"]["images_per_second"] == pytest.approx(8 / 0.3)


def test_arithmetic_is_the_limit_when_nothing_can_go() -> None:
    found = step_time(_run(data_wait_s=0.01, forward_s=0.4, backward_s=0.8), None)
    assert found is not None
    assert found["bottleneck"]["phase"] == "compute"
    assert found["bottleneck"]["gain"] < 0.01


def _on_a_gpu(seconds: float, launching: float) -> RunData:
    """A hundred steps of which the first of an epoch tell what launching takes: later, the thread is busy waiting."""
    run = RunData(JobFacts(config={}, gpus=["a GPU"]))
    for i in range(100):
        thread = launching if i % 50 < 3 else seconds
        run.add_step(
            StepRecord(
                step=i,
                epoch=1 + i // 50,
                mode="train",
                time=1 + i * seconds,
                seconds=seconds,
                images=8,
                loss=1,
                clean_loss=1,
                forward_s=seconds / 2,
                backward_s=seconds / 2,
                thread_s=thread,
            )
        )
    return run


def _speed_advice(run: RunData, *covered: Aspect) -> list[str]:
    return [item["title"] for item in advice._speed({"time": step_time(run, None)}, frozenset(covered))]


def test_where_launching_fills_a_step_larger_batches_are_advised() -> None:
    assert launch_share(_on_a_gpu(0.010, 0.009)) == pytest.approx(0.9)
    assert _speed_advice(_on_a_gpu(0.010, 0.009)) == ["Give each step more to do: a larger batch_size"]
    assert _speed_advice(_on_a_gpu(0.010, 0.009), "speed") == []  # a rule has spoken
    assert _speed_advice(_on_a_gpu(0.010, 0.004)) == []
    on_a_cpu = _run(0.5, steps=100, forward_s=0.25, backward_s=0.25, thread_s=0.5)  # the thread computes
    assert launch_share(on_a_cpu) == 0
    assert _speed_advice(on_a_cpu) == []


def test_phases_that_overlap_on_a_gpu_share_what_waiting_leaves_of_the_step() -> None:
    found = step_time(_run(0.5, steps=3, data_wait_s=0.1, forward_s=0.4, backward_s=0.4), None)
    assert found is not None
    shares = {row["phase"]: row["share"] for row in found["phases"]}
    assert shares == pytest.approx({"data_wait_s": 0.2, "forward_s": 0.4, "backward_s": 0.4})


def _titles(facts: dict[str, Any]) -> str:
    return " | ".join(item["title"] for item in facts["next"])


def test_rules_that_fired_are_the_first_advice(job: Path) -> None:
    facts = gather(job)
    assert facts["next"][0]["title"] == "Set workers=8, or store the images smaller"
    assert "weights=imagenet" in _titles(facts)
    assert "deploy.py serve" not in _titles(facts)


@pytest.mark.parametrize(
    ("aspect", "left_out"),
    [
        ("generalization", {"Close the gap", "Train longer: epochs=24"}),
        ("learning", {"Train longer: epochs=24"}),
        ("classes", {"Add images of"}),
        ("speed", {"Feed the network"}),
        (None, set()),
    ],
)
def test_advice_leaves_to_a_rule_what_its_class_says(
    job: Path,
    registry: dict[str, type[Rule]],
    monkeypatch: pytest.MonkeyPatch,
    aspect: Aspect | None,
    left_out: set[str],
) -> None:
    monkeypatch.setattr("image_classifier.report.advice.MAX_ITEMS", 100)
    type("OfOurs", (Rule,), {"managed": None, "aspect": aspect, "judge": lambda *_: insufficient("never asked")})
    fired = {"rule": "OfOurs", "verdict": "IssuesFound", "severity": "warning", "summary": "it is so", "advice": ""}
    facts = gather(job)

    def titles(*rules: dict[str, str]) -> set[str]:
        return {" ".join(item["title"].split()[:3]) for item in what_next(facts | {"rules": list(rules)})}

    said_of_rules = {"See the rule", "Serve it: python"}  # the one says that a rule fired, the other that none did
    assert titles() - titles(fired) - said_of_rules == left_out
    assert titles(fired) - titles() == {"See the rule"}
    assert titles(fired | {"rule": "OfAnotherVersion"}) >= titles() - said_of_rules


def test_a_clean_job_is_told_to_serve(own_job: Path) -> None:
    (own_job / "output/data/rules.json").write_text("[]")
    assert "python deploy.py serve train-1" in _titles(gather(own_job)) or len(gather(own_job)["next"]) == 6


def test_without_test_images_the_accuracy_is_called_flattering(own_job: Path) -> None:
    path = own_job / "output/data/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["metrics"] = {name: v for name, v in metrics["metrics"].items() if not name.startswith("test:")}
    del metrics["images"]["test"]
    path.write_text(json.dumps(metrics))
    (own_job / "output/data/rules.json").write_text("[]")
    facts = gather(own_job)
    assert facts["outcome"]["accuracy"]["split"] == "validation"
    assert "Add a test folder" in _titles(facts)
