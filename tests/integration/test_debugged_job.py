"""A whole job that a rule stops, and that goes on without it: real program, real files."""

from __future__ import annotations

import gzip
import json

import pytest
from tests.integration.test_train_job import Job

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import EXIT_RULE_FIRED
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.saved import read_files, read_trial
from image_classifier.debugging.schema import (
    PHASES,
    Verdict,
    read_job,
    read_statistics,
    read_steps,
    rule_results_from_json,
)
from image_classifier.vision import network
from image_classifier.vision.sample_data import make_sample_data

LR = "1e-08"
EPOCHS = 3
STEPS = 6  # an epoch: 24 images in batches of 4


@pytest.fixture(scope="module")
def stopped_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, str, str]:
    """A job after both starts, the log of the first, and its metrics.json and failure."""
    data = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(data, num_classes=2, train_per_class=12, valid_per_class=4, test_per_class=2, size=48)
    options = {"lr": LR, "debug_interval": "2", "epochs": str(EPOCHS), "warmup_epochs": "0", "trace_steps": "1"}
    job = Job(tmp_path_factory.mktemp("job") / "base", data, stop_on="WeightUpdateRatio", **options)
    code, log = job.run()
    assert code == EXIT_RULE_FIRED, log
    reason = job.failure
    outcome = (job.paths.output_data / "metrics.json").read_text()
    Job._write(job.paths.hyperparameters, json.loads(job.paths.hyperparameters.read_text()) | {"stop_on": "none"})
    code, second = job.run()
    assert code == 0, second
    assert "resuming from" in second
    return job, log, reason + "\n\n" + outcome


def test_a_fired_rule_stops_the_job_after_a_checkpoint_and_says_why(stopped_and_resumed: tuple[Job, str, str]) -> None:
    _, log, ending = stopped_and_resumed
    reason, _, outcome = ending.partition("\n\n")
    message, _, hint = reason.partition("\nhint: ")
    assert message.startswith("stopped by rule WeightUpdateRatio (")
    assert "in epoch 2 of 3, step 0 of 6; the state is saved" in message
    assert f"raise lr (it is {LR})" in hint
    assert "stop_on=none" in hint
    assert message in log
    document = json.loads(outcome)
    assert document["outcome"] == "stopped by a rule"
    assert document["reason"] == message
    assert document["epochs"] == 1


def test_the_resumed_job_ends_well_and_its_files_know_all_steps(stopped_and_resumed: tuple[Job, str, str]) -> None:
    job, _, _ = stopped_and_resumed
    data = job.paths.output_data
    assert json.loads((data / "metrics.json").read_text())["outcome"] == "completed"
    steps = read_steps(data)
    assert [record.step for record in steps if record.mode == "train"] == list(range(STEPS * EPOCHS))
    assert [record.step for record in steps if record.mode == "eval"] == list(range(2 * EPOCHS))
    assert {record.mode for record in steps} == {"train", "eval", "test"}
    first = steps[0]
    alone = [phase for phase in PHASES if phase != "sync_s"]  # there is nobody to wait for
    assert first.sync_s is None
    assert all(getattr(first, phase) is not None for phase in alone)
    assert sum(getattr(first, phase) for phase in alone) <= first.seconds * 1.01
    facts = read_job(data)
    assert facts is not None
    assert facts.config == vars(TrainConfig.from_hyperparameters(json.loads(job.paths.hyperparameters.read_text())))
    assert set(facts.classes) == {folder.name for folder in (job.paths.channel("train")).iterdir()}


@pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023
def test_verdicts_of_the_job_are_those_over_its_output(
    stopped_and_resumed: tuple[Job, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMDEBUG_TRAINING_END_DELAY_REFRESH", "0")
    job, _, _ = stopped_and_resumed
    live = rule_results_from_json((job.paths.output_data / "rules.json").read_text())
    rules = parse_rules("all")
    assert judge(read_files(job.paths.output), rules) == live
    trial = {each.rule: each for each in judge(read_trial(job.paths.tensors, read_job(job.paths.output_data)), rules)}
    tensor_rules = [rule.name for rule in rules if rule.about == "tensors"]
    assert [trial[name] for name in tensor_rules] == [each for each in live if each.rule in tensor_rules]
    by_name = {result.rule: result for result in live}
    assert by_name["WeightUpdateRatio"].verdict is Verdict.ISSUES
    assert by_name["ExplodingTensor"].verdict is Verdict.NO_ISSUES


def test_statistics_cover_every_layer_and_the_trace_is_there(stopped_and_resumed: tuple[Job, str, str]) -> None:
    job, _, _ = stopped_and_resumed
    first = read_statistics(job.paths.output_data)[0]
    assert list(first.gradients) == list(first.weights) == [f"{name}.weight" for name in network.layers()]
    assert len(first.activations) == 49  # its ReLUs, counted by call
    assert set(first.inputs) == {"0", "1", "2"}
    with gzip.open(job.paths.output_data / "trace.json.gz") as file:
        trace = json.load(file)
    assert any(event.get("name", "").startswith("aten::conv") for event in trace["traceEvents"])
