"""A verdict may be taken back, one cause is one finding, and numbers that mean nothing are not judged."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.rule_replay import Recording, judge_recording
from benchmarks.system_runs import MACHINES, record
from tests.rule_examples import CONFIG, always, batches, noise, recorded, run_with
from torch import nn

from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.measures import guessing_loss, has_learned, planned_steps
from image_classifier.debugging.rules import judge, parse_rules, with_causes
from image_classifier.debugging.rules.base import Finding, Rule, healthy, issue
from image_classifier.debugging.rules.losses import LossNotDecreasing
from image_classifier.debugging.rules.overfitting import Overfit, Overtraining
from image_classifier.debugging.rules.tensors import DeadRelu, PoorWeightInitialization
from image_classifier.debugging.rules.weights import WeightUpdateRatio
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import (
    ClassCounts,
    Evidence,
    JobFacts,
    RuleResult,
    StatisticsRecord,
    StepRecord,
    Verdict,
)
from image_classifier.debugging.tensorstats import activation_statistics, to_numbers


def fired(rule: str, step: int | None = 0) -> RuleResult:
    evidence = (Evidence(step=step, name="it", value=1.0),)
    return RuleResult(rule=rule, verdict=Verdict.ISSUES, severity="warning", summary="it is so", evidence=evidence)


def test_a_loss_that_falls_at_last_takes_the_finding_back() -> None:
    flat, falling = [1.4] * 160, np.linspace(1.4, 0.3, 80).tolist()
    losses = (np.array(flat + falling) + noise(240, 0.05)).tolist()
    assert LossNotDecreasing().check(run_with(losses[:160], per_epoch=30)).verdict is Verdict.ISSUES
    assert LossNotDecreasing().check(run_with(losses, per_epoch=30)).verdict is Verdict.NO_ISSUES


def test_a_loss_on_its_way_below_guessing_is_not_said_not_to_go_down() -> None:
    run = run_with((np.linspace(1.47, 0.72, 140) + noise(140, 0.03)).tolist(), per_epoch=40)  # of 320 planned steps
    run.job.classes.extend(["a", "b"])
    assert LossNotDecreasing().check(run).verdict is Verdict.NO_ISSUES
    stuck = run_with((1.2 * np.exp(-np.arange(320) / 20) + 0.70 + noise(320, 0.02)).tolist(), per_epoch=40)
    stuck.job.classes.extend(["a", "b"])
    result = LossNotDecreasing().check(stuck)
    assert result.verdict is Verdict.ISSUES
    assert "no further down than guessing (0.693)" in result.summary
    assert "does not go down" not in result.summary


def test_guessing_knows_how_often_each_class_comes() -> None:
    run = RunData(JobFacts(config=CONFIG, classes=["a", "b"]))
    assert guessing_loss(run) == pytest.approx(math.log(2))
    run.add_classes(ClassCounts(mode="train", step=9, epoch=1, labels=(90, 10), hits=(0, 0)))
    assert guessing_loss(run) == pytest.approx(0.3251, abs=1e-4)
    assert math.isnan(guessing_loss(RunData(JobFacts(config={}))))


@pytest.mark.parametrize(("losses", "verdict"), [([1.4] * 30, Verdict.ISSUES), (None, Verdict.NO_ISSUES)])
def test_a_training_of_thirty_steps_is_judged(losses: list[float] | None, verdict: Verdict) -> None:
    values = np.array(losses) if losses else np.linspace(1.4, 0.4, 30)
    run = run_with((values + noise(30, 0.08)).tolist(), per_epoch=3, epochs=10)
    assert planned_steps(run) == 30
    assert LossNotDecreasing().check(run).verdict is verdict


def test_learning_is_a_plain_fall_below_guessing() -> None:
    assert has_learned(run_with(np.linspace(1.4, 0.4, 60).tolist()))
    assert not has_learned(run_with([1.4] * 60))
    assert not has_learned(run_with([1.4, 0.1]))
    assert not has_learned(run_with([1.4] * 30 + [math.nan] * 30))
    unlearned = run_with(np.linspace(9.0, 1.4, 60).tolist())
    unlearned.job.classes.extend("abcd")
    assert not has_learned(unlearned)


@pytest.mark.parametrize("rule", [LossNotDecreasing(), Overfit(), Overtraining(patience_valid=2)])
def test_losses_that_are_no_numbers_are_not_judged(rule: Rule) -> None:
    run = run_with([1.0] * 40 + [math.nan] * 120, [1.0, 1.0, *[math.nan] * 6])
    result = rule.check(run)
    assert result.verdict is Verdict.INSUFFICIENT_DATA
    assert "nan" not in result.summary.lower().replace("finite", "")


def test_statistics_after_the_first_that_is_not_finite_are_not_judged() -> None:
    broken = [{"update_ratio": 1e-3, "l2": 1.0}] + [{"update_ratio": math.nan, "l2": math.nan}] * 9
    assert WeightUpdateRatio().check(recorded("weights", fc=broken)).verdict is Verdict.INSUFFICIENT_DATA


def test_a_head_that_begins_at_zero_is_not_torn_about() -> None:
    norms = [0.0, 0.1, 0.4, 0.9, 1.4, 1.8, 2.0, 2.0, 2.0, 2.0]
    ratios = [1e8, 1.0, 1.5, 0.9, 0.4, 0.01, 0.01, 0.01, 0.01, 0.01]
    head = [{"update_ratio": ratio, "l2": norm} for ratio, norm in zip(ratios, norms, strict=True)]
    assert WeightUpdateRatio().check(recorded("weights", fc=head)).verdict is Verdict.NO_ISSUES
    torn = [{"update_ratio": 0.5, "l2": 2.0}] * 10
    assert WeightUpdateRatio().check(recorded("weights", fc=torn)).verdict is Verdict.ISSUES


def test_a_batch_of_one_says_nothing_of_deviations_and_dead_units() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    run = RunData(JobFacts(config=CONFIG))
    for step in (0, 5, 50):
        seen = to_numbers({"activations": activation_statistics(network, torch.randn(1, 4))})
        run.add_statistics(StatisticsRecord(step=step, **seen))
    for rule in (PoorWeightInitialization(), DeadRelu()):
        assert rule.check(run).verdict is Verdict.INSUFFICIENT_DATA


def test_units_to_spare_are_no_disease_of_a_network_that_is_right() -> None:
    dead = always(zero_share=0.9, dead_share=0.8, looks=640.0)
    run = recorded("activations", relu=dead)
    assert DeadRelu().check(run).verdict is Verdict.ISSUES
    right = run_with(np.linspace(1.4, 0.02, 100).tolist())
    right.job.classes.extend("abcd")
    for step in range(0, 100, 10):
        right.add_statistics(StatisticsRecord(step=step, activations={"relu": dead[0]}))
    assert DeadRelu().check(right).verdict is Verdict.NO_ISSUES


def test_overtraining_tells_nothing_of_what_never_learned_or_was_soon_over() -> None:
    never = run_with([1.386] * 300, [1.386] * 15)
    never.job.classes.extend("abcd")
    assert Overtraining().check(never).verdict is Verdict.NO_ISSUES
    late = run_with(
        np.repeat(np.linspace(1.4, 0.1, 30), 20).tolist() + [0.1] * 220, [*np.linspace(1.4, 0.2, 30), *[0.2] * 11]
    )
    assert Overtraining().check(late).verdict is Verdict.NO_ISSUES  # 11 of 41 epochs


def test_of_two_findings_the_cause_comes_first() -> None:
    found = with_causes([fired("LossNotDecreasing", 300), fired("VanishingGradient", 10), fired("DeadRelu", 5)])
    assert [each.symptom_of for each in found] == ["VanishingGradient", "", ""]
    alone = with_causes([fired("LossNotDecreasing", 300)])
    assert alone[0].symptom_of == ""


def test_what_comes_later_is_no_cause() -> None:
    exploded = with_causes([fired("ExplodingTensor", 50), fired("DeadRelu", 5)])
    assert [each.symptom_of for each in exploded] == ["", ""]
    dead = with_causes([fired("ExplodingTensor", 5), fired("DeadRelu", 50)])
    assert [each.symptom_of for each in dead] == ["", "ExplodingTensor"]


def test_every_symptom_that_a_rule_names_is_a_rule() -> None:
    rules = {rule.name: type(rule) for rule in parse_rules("all")}
    for rule in rules.values():
        assert set(rule.explains) <= rules.keys() - {rule.__name__}


def test_a_live_verdict_is_told_once_and_its_end_too(
    registry: dict[str, type[Rule]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fever(Rule):
        managed = None

        def judge(self, run: RunData) -> Finding:
            hot = len(run.step("train", "loss")) < 3
            return issue("it is hot", "wait", (), 1) if hot else healthy("it is cool again", 1)

    run = run_with([1.0])
    live = LiveRules(run, tmp_path, parse_rules("Fever"), (), flush=lambda: None, on_stop=lambda _: None)
    with caplog.at_level(logging.INFO):
        live.look()
        live.look()
        for extra in (1, 2):
            run.add_step(next_step(extra))
        live.look()
    told = [record.message for record in caplog.records]
    assert told == ["rule Fever: it is hot; wait", "rule Fever takes its finding back: it is cool again"]


def next_step(number: int) -> StepRecord:
    values = {"seconds": 1.0, "loss": 1.0, "clean_loss": 1.0}
    return StepRecord(step=number, epoch=1, mode="train", time=2000.0 + number, images=32, **values)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"outputs": {"min": 0.0, "max": 1.0}, "row_sums": {"min": 1.0, "max": 1.0}}, "a softmax stands before"),
        ({"outputs": {"min": 0.1, "max": 0.9}, "row_sums": {"min": 1.5, "max": 2.2}}, "a sigmoid stands before"),
        ({"outputs": {"min": 0.0, "max": 4.0}}, "a ReLU stands before"),
        ({"outputs": {"min": -1.0, "max": 1.0}}, "a tanh stands before"),
        (
            {"outputs": {"min": 1.0, "max": 1.0, "columns": 1.0}, "row_sums": {"min": 1.0, "max": 1.0}},
            "a softmax over one unit",
        ),
    ],
)
def test_the_advice_names_the_head(parts: dict[str, dict[str, float]], words: str) -> None:
    run = batches(**parts, labels={"min": 0.0, "max": 0.0}) if "columns" in parts["outputs"] else batches(**parts)
    result = next(each for each in judge(run, parse_rules("WrongHead")))
    assert result.verdict is Verdict.ISSUES
    assert words in result.summary
    assert "head" in result.advice


@pytest.mark.parametrize(
    ("phases", "advice"),
    [
        ({}, "set workers=8 or cache=decoded"),  # nobody measured
        ({"data_wait_s": 0.2, "forward_s": 0.1}, "set workers=8 or cache=decoded"),
        (
            {"data_wait_s": 0.01, "forward_s": 0.3},
            "the thread that launches the GPU's work is the limit: raise batch_size",
        ),
        ({"data_wait_s": 0.01, "forward_s": 0.1, "hook_s": 0.2}, "recording takes 60 %: raise debug_interval"),
    ],
)
def test_a_busy_core_is_fed_by_what_it_is_busy_with(phases: dict[str, float], advice: str) -> None:
    recording = record(MACHINES["GPU starved by a busy core"], seed=1)
    records = [
        dataclasses.replace(each, **phases) if isinstance(each, StepRecord) and each.mode == "train" else each
        for each in recording.records
    ]
    result = judge_recording(Recording(recording.job, records), parse_rules("CPUBottleneck")).results[0]
    assert result.verdict is Verdict.ISSUES
    assert advice in result.advice


def test_deviations_that_are_rounding_alone_are_none() -> None:
    run = recorded("activations", first=always(input_std=3e-9), last=always(input_std=1e-8))
    result = PoorWeightInitialization().check(run)
    assert result.summary.startswith("the deviation of what enters the activations is 0 in some layers")
