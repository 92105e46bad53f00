"""What the rules say of runs made up for the purpose; on real trainings see test_debugging_backends.py."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.rule_replay import judge_recording
from benchmarks.system_runs import MACHINES, TIMES, record, timed
from tests.rule_examples import CONFIG, EXAMPLES, Counts, classes_of, noise, run_with, timed_steps

from image_classifier.contract.errors import ConfigError
from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.rules import MODULES, RULES, judge, parse_rules
from image_classifier.debugging.rules.base import Finding, Rule, insufficient, issue
from image_classifier.debugging.rules.classes import ClassImbalance, binomial_tail
from image_classifier.debugging.rules.framework import MaxInitializationTime, StepOutlier, without_running_ahead
from image_classifier.debugging.rules.losses import ExplodingTensor, LossNotDecreasing
from image_classifier.debugging.rules.overfitting import Overfit
from image_classifier.debugging.rules.table import BEGIN, END, with_table
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import (
    MAX_EVIDENCE,
    ClassCounts,
    JobFacts,
    RuleResult,
    StatisticsRecord,
    StepRecord,
    Verdict,
    rule_results_from_json,
    rule_results_to_json,
)


def verdicts(run: RunData) -> dict[str, RuleResult]:
    return {result.rule: result for result in judge(run, parse_rules("all"))}


@pytest.mark.parametrize("case", MACHINES)
def test_system_rules_tell_sick_machines_from_healthy_ones_also_live(case: str) -> None:
    rules = [rule for rule in parse_rules("all") if rule.about == "system"]
    judgement = judge_recording(record(MACHINES[case], seed=1), rules)
    fired = {result.rule: result for result in judgement.results if result.verdict is Verdict.ISSUES}
    assert {rule.__name__ for rule in MACHINES[case].rules} <= set(fired)
    assert set(fired) <= set(judgement.stops)
    if not MACHINES[case].rules:
        assert not judgement.stops
    assert all(result.advice and result.evidence for result in fired.values())


@pytest.mark.parametrize("case", TIMES)
def test_late_starts_and_stalls_are_found(case: str) -> None:
    expected, start_s, pause_s = TIMES[case]
    judgement = judge_recording(timed(start_s, pause_s), parse_rules("StalledTraining,MaxInitializationTime"))
    fired = {result.rule for result in judgement.results if result.verdict is Verdict.ISSUES}
    assert fired == set(judgement.stops) == {rule.__name__ for rule in expected}


def test_a_gpu_is_not_judged_by_a_short_first_epoch() -> None:
    machine = dataclasses.replace(MACHINES["GPU at 40 %"], epochs=1, epoch_s=200)
    rules = parse_rules("LowGPUUtilization,BatchSize")
    results = judge_recording(record(machine, seed=1), rules).results
    assert {result.verdict for result in results} == {Verdict.INSUFFICIENT_DATA}
    longer = dataclasses.replace(machine, epoch_s=400)
    results = judge_recording(record(longer, seed=1), rules).results
    assert {result.verdict for result in results} == {Verdict.ISSUES}


def test_nothing_recorded_is_never_an_issue_nor_an_error() -> None:
    for result in verdicts(RunData(JobFacts(config={}))).values():
        assert result.verdict is Verdict.INSUFFICIENT_DATA
        assert result.summary
        assert result.evidence == ()


def test_noisy_but_falling_loss_is_healthy_windowed_and_sick_in_the_literal_form() -> None:
    run = run_with((1.5 * np.exp(-np.arange(300) / 150) + 0.5 + noise(300)).tolist())
    assert LossNotDecreasing().check(run).verdict is Verdict.NO_ISSUES
    assert LossNotDecreasing(literal=True).check(run).verdict is Verdict.ISSUES


def test_loss_that_rises_again_is_found_with_the_step() -> None:
    falling, rising = np.linspace(2, 0.5, 200), np.linspace(0.5, 1.5, 100)
    result = LossNotDecreasing().check(run_with((np.concatenate([falling, rising]) + noise(300, 0.05)).tolist()))
    assert result.verdict is Verdict.ISSUES
    assert "rises" in result.summary or "is rising" in result.summary
    assert result.evidence[-1].step is not None
    assert 200 < result.evidence[-1].step < 300


def test_overfit_needs_a_validation_that_gets_worse() -> None:
    train = np.repeat(np.linspace(1.4, 0.1, 8), 20).tolist()
    assert Overfit().check(run_with(train, [1.3, 1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7])).verdict is Verdict.NO_ISSUES
    result = Overfit().check(run_with(train, [1.3, 1.0, 0.8, 0.7, 0.8, 0.9, 1.0, 1.1]))
    assert result.verdict is Verdict.ISSUES
    assert "epochs=5" in result.advice
    assert (
        Overfit(literal=True).check(run_with(train, [1.3, 1.0, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7])).verdict is Verdict.ISSUES
    )


def test_overfit_is_not_taken_back_when_the_learning_rate_ends_at_zero() -> None:
    train = np.repeat(np.linspace(1.4, 0.1, 8), 20).tolist()
    result = Overfit().check(run_with(train, [1.3, 1.0, 0.7, 0.8, 0.9, 1.0, 1.0, 0.75]))
    assert result.verdict is Verdict.ISSUES
    assert "epochs=4" in result.advice


def test_overfit_waits_for_a_hundred_steps_or_a_quarter_of_a_short_training() -> None:
    train, valid = np.repeat(np.linspace(1.4, 0.1, 8), 20).tolist(), [1.3, 1.0, 0.8, 0.7, 0.8, 0.9, 1.0, 1.1]
    early = [train[index] for index in range(0, 160, 4)]
    assert Overfit().check(run_with(early, valid, per_epoch=5)).verdict is Verdict.ISSUES  # of 40 planned steps
    assert Overfit().check(run_with(early, valid, per_epoch=5, epochs=80)).verdict is Verdict.INSUFFICIENT_DATA
    assert Overfit().check(run_with(train, valid)).verdict is Verdict.ISSUES


@pytest.mark.parametrize(("num_images", "verdict"), [(16, Verdict.NO_ISSUES), (1600, Verdict.ISSUES)])
def test_overfit_does_not_count_what_chance_does_to_few_validation_images(num_images: int, verdict: Verdict) -> None:
    train = np.repeat(np.linspace(1.4, 0.3, 8), 20).tolist()
    run = run_with(train, [1.3, 1.0, 0.8, 0.7, 0.75, 0.8, 0.8, 0.8])
    labels = (num_images // 4,) * 4
    hits = tuple(n * 3 // 4 for n in labels)
    for epoch in range(1, 9):
        run.add_classes(ClassCounts(mode="eval", step=epoch - 1, epoch=epoch, labels=labels, hits=hits))
    assert Overfit().check(run).verdict is verdict


def test_class_sizes_of_a_part_of_an_epoch_are_no_proof() -> None:
    assert ClassImbalance().check(classes_of((11, 4, 0, 5))).verdict is Verdict.NO_ISSUES
    assert ClassImbalance().check(classes_of((240, 200, 8, 210))).verdict is Verdict.ISSUES
    assert ClassImbalance().check(classes_of((240, 200, 30, 210))).verdict is Verdict.NO_ISSUES


@pytest.mark.parametrize(
    ("images", "hits", "verdict"),
    [
        ((40, 40, 40, 40), (38, 39, 40, 8), Verdict.ISSUES),  # 80 % wrong, of all 24 %
        ((4, 4, 4, 4), (4, 3, 3, 1), Verdict.NO_ISSUES),  # 75 % wrong, but that is three images
        ((6,) * 133, (*(6, 5) * 66, 0), Verdict.ISSUES),  # all six wrong, of the other 132 classes one in twelve
        ((40, 40), (39, 2), Verdict.ISSUES),  # one of two
        ((40, 40, 40, 40), (15, 14, 16, 8), Verdict.NO_ISSUES),  # 80 % wrong, but nothing is right
    ],
)
def test_a_class_is_not_learned_when_chance_does_not_explain_it(images: Counts, hits: Counts, verdict: Verdict) -> None:
    labels = (100,) * len(images)
    assert ClassImbalance().check(classes_of(labels, valid=[(images, hits)] * 8)).verdict is verdict


def test_a_class_may_be_learned_late() -> None:
    bad, good = ((40, 40), (40, 2)), ((40, 40), (40, 39))
    on_the_way = [ClassImbalance().check(classes_of((9, 9), valid=[bad] * n)).verdict for n in range(1, 6)]
    assert on_the_way == [Verdict.NO_ISSUES] * 5
    assert ClassImbalance().check(classes_of((9, 9), valid=[bad] * 5 + [good] * 3)).verdict is Verdict.NO_ISSUES
    assert ClassImbalance().check(classes_of((9, 9), valid=[bad] * 6)).verdict is Verdict.ISSUES


def test_binomial_tail_is_that_of_the_table() -> None:
    assert binomial_tail(0, 5, 0.3) == 1.0
    assert binomial_tail(5, 5, 0.5) == pytest.approx(1 / 32)
    assert binomial_tail(8, 10, 0.5) == pytest.approx(56 / 1024)
    assert binomial_tail(3, 4, 0.0) == 0.0


def test_steps_that_pause_are_found_and_what_other_programs_take_is_not() -> None:
    rng = np.random.default_rng(0)
    usual = 0.1 * rng.lognormal(0, 0.2, 400)
    assert StepOutlier().check(timed_steps(usual.tolist())).verdict is Verdict.NO_ISSUES
    paused = usual + np.where(np.arange(400) % 20 == 19, 1.0, 0.0)
    result = StepOutlier().check(timed_steps(paused.tolist()))
    assert result.verdict is Verdict.ISSUES
    assert result.summary.startswith("20 of 399 steps")
    rare = usual + np.where(np.arange(400) % 33 == 32, 0.3, 0.0)  # twelve steps, 8 % of the time
    assert StepOutlier().check(timed_steps(rare.tolist())).verdict is Verdict.NO_ISSUES
    slices = 0.008 * rng.lognormal(0, 0.2, 400) + np.where(rng.random(400) < 0.1, 0.03, 0.0)
    assert StepOutlier().check(timed_steps(slices.tolist())).verdict is Verdict.NO_ISSUES
    half_the_steps = usual + np.where(np.arange(400) % 2 == 0, 0.15, 0.0)  # a second program, all the time
    assert StepOutlier().check(timed_steps(half_the_steps.tolist())).verdict is Verdict.NO_ISSUES


def test_a_host_that_waits_for_the_steps_it_ran_ahead_of_has_no_outliers() -> None:
    ahead = [0.003] * 8 + [0.02 + 8 * 0.017] + [0.02] * 11  # 20 steps of 20 ms, of which 8 were launched at once
    assert StepOutlier().check(timed_steps(20 * ahead)).verdict is Verdict.NO_ISSUES
    slower = [0.003] * 8 + [0.02 + 8 * 0.017 + 0.3] + [0.02] * 11
    result = StepOutlier().check(timed_steps(20 * slower))
    assert result.verdict is Verdict.ISSUES
    assert result.summary.startswith("20 of 399 steps")


def test_running_ahead_ends_with_the_epoch() -> None:
    seconds = np.array([0.1, 0.01, 0.01, 0.28, 0.1, 0.01, 0.2, 0.3])
    found = without_running_ahead(seconds, np.full(8, 0.1), np.array([1, 1, 1, 1, 1, 1, 2, 2]))
    assert found == pytest.approx([0.1, 0.01, 0.01, 0.1, 0.1, 0.01, 0.2, 0.3])


def test_infinite_and_nan_are_found_at_their_first_step() -> None:
    run = run_with([1.0, 2.0, math.nan])
    run.add_statistics(StatisticsRecord(step=1, gradients={"fc.weight": {"l2": math.inf, "abs_mean": 1.0}}))
    result = ExplodingTensor().check(run)
    assert result.verdict is Verdict.ISSUES
    assert [(each.step, each.name) for each in result.evidence] == [(1, "gradient fc.weight l2"), (2, "train loss")]
    assert [each.step for each in ExplodingTensor(only_nan=True).check(run).evidence] == [2]


def test_no_rule_fails_on_numbers_that_are_not_finite() -> None:
    run = run_with([1.0] * 10 + [math.nan] * 300, [math.nan] * 15)
    for step in range(0, 100, 5):
        values = {"abs_mean": math.nan, "l2": math.inf, "abs_max": math.nan, "update_ratio": math.nan}
        activation = {"input_std": math.nan, "abs_max": math.inf, "zero_share": math.nan, "dead_share": math.nan}
        inputs = {"0": {"mean": math.nan, "std": math.nan, "images": 100.0}}
        run.add_statistics(
            StatisticsRecord(
                step=step,
                gradients={"a": values, "b": values},
                weights={"a": values},
                activations={"r_output_0": activation},
                inputs=inputs,
            )
        )
    assert [result.rule for result in verdicts(run).values() if result.verdict is Verdict.ERROR] == []


WITHOUT_WORKERS = (
    "make the images smaller (image_size is what is needed), augment=light, or take an instance with more cores"
)


@pytest.mark.parametrize(
    ("workers", "cached", "advice"),
    [
        (2, False, "set workers=8 or cache=decoded"),
        (2, True, "set workers=8"),
        (8, False, f"workers=8 already fills the 8 cores: cache=decoded, {WITHOUT_WORKERS}"),
        (8, True, f"workers=8 already fills the 8 cores: {WITHOUT_WORKERS}"),
    ],
)
def test_data_wait_advice_names_the_hyperparameter(workers: int, cached: bool, advice: str) -> None:
    run = RunData(JobFacts(config=CONFIG, cores=8, workers=workers, cached=cached))
    for step in range(50):
        run.add_step(
            StepRecord(
                step=step,
                epoch=1 + step // 25,  # the first fills the cache
                mode="train",
                time=1000.0 + step,
                seconds=1.0,
                images=32,
                loss=1.0,
                clean_loss=1.0,
                data_wait_s=0.61,
            )
        )
    result = verdicts(run)["Dataloader"]
    assert result.summary.startswith("data wait is 61 % of the step")
    assert result.advice == advice


def test_rule_that_raises_becomes_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Overfit, "judge", broken)
    result = Overfit().check(run_with([1.0]))
    assert result.verdict is Verdict.ERROR
    assert "oops" in result.summary


def test_results_survive_the_round_trip_through_json() -> None:
    results = list(judge_recording(record(MACHINES["GPU at 40 %"], seed=0), parse_rules("all")).results)
    assert rule_results_from_json(rule_results_to_json(results)) == results
    assert all(len(result.evidence) <= MAX_EVIDENCE for result in results)


def test_rules_are_chosen_by_name() -> None:
    assert [rule.name for rule in parse_rules("Overfit, DeadRelu")] == ["Overfit", "DeadRelu"]
    assert parse_rules("none") == ()
    assert [type(rule) for rule in parse_rules("all")] == list(RULES.values())
    with pytest.raises(ConfigError, match="there is no rule 'DeadReLU'"):
        parse_rules("DeadReLU")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_says_its_formula_and_defaults_where_it_is_defined(rule: type[Rule]) -> None:
    assert rule.__doc__
    assert any(word in rule.__doc__ for word in ("Fires when", "fires when", "Never fires"))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_finds_its_disease_and_nothing_in_a_healthy_run(rule: type[Rule]) -> None:
    assert rule in EXAMPLES, f"tests/rule_examples.py has no sick and healthy run for {rule.__name__}"
    example = EXAMPLES[rule]
    assert rule().check(example.healthy()).verdict is Verdict.NO_ISSUES
    assert (example.sick is None) == ("Never fires" in str(rule.__doc__)), "a rule that can fire needs a sick run"
    if example.sick is not None:
        result = rule().check(example.sick())
        assert result.verdict is Verdict.ISSUES
        assert result.advice
        assert result.evidence


def test_rules_come_in_the_order_of_their_modules() -> None:
    modules = [module.__name__ for module in MODULES]
    assert [rule.__module__ for rule in RULES.values()] == sorted(
        (rule.__module__ for rule in RULES.values()), key=modules.index
    )


def test_no_module_of_rules_is_left_out(registry: dict[str, type[Rule]]) -> None:
    package = MODULES[0].__name__.rpartition(".")[0]
    known = list(registry)
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
        assert list(registry) == known, f"rules/__init__.py does not import {module.name}"


def test_a_class_with_a_verdict_is_a_rule_and_a_base_is_not(registry: dict[str, type[Rule]]) -> None:
    class Base(Rule):
        pass

    class Quiet(Base):
        managed = None

        def judge(self, run: RunData) -> Finding:
            return insufficient("looks at nothing")

    assert "Base" not in registry
    assert {"Rule", "SystemRule", "ClockRule"}.isdisjoint(registry)
    assert list(registry.values())[-1] is Quiet
    assert [rule.name for rule in parse_rules("Quiet")] == ["Quiet"]
    assert parse_rules("all")[-1] == Quiet()


def test_a_rule_must_say_what_aws_has_in_its_place(registry: dict[str, type[Rule]]) -> None:
    with pytest.raises(TypeError, match="the rule Overfit2 does not say what AWS has in its place"):
        type("Overfit2", (Overfit,), {})  # not what AWS has in the other's place
    assert "Overfit2" not in registry


def test_two_rules_cannot_have_one_name(registry: dict[str, type[Rule]]) -> None:
    with pytest.raises(TypeError, match=r"there is a rule Overfit already, in image_classifier\.debugging"):
        type("Overfit", (Overfit,), {"managed": None})
    assert registry["Overfit"] is Overfit


def test_a_rule_that_can_fire_while_nothing_happens_is_asked_then(
    registry: dict[str, type[Rule]], tmp_path: Path
) -> None:
    class Silence(Rule):
        managed = None
        idle_s = 7.0

        def judge(self, run: RunData) -> Finding:
            return issue("it is silent", "listen", (), 1)

    def live(names: str) -> LiveRules:
        rules = parse_rules(names)
        return LiveRules(run_with([1.0]), tmp_path, rules, rules, flush=lambda: None, on_stop=lambda _: None)

    assert live("Overfit,ExplodingTensor").patience_s == math.inf
    assert live("Overfit,StalledTraining,MaxInitializationTime").patience_s == MaxInitializationTime().threshold_s
    assert live("all").patience_s == Silence.idle_s
    fired = live("Overfit,Silence").look_from_outside()
    assert fired is not None
    assert fired.rule == "Silence"


def test_the_documentations_table_is_that_of_the_classes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "debugger.md").read_text(encoding="utf-8")
    assert page == with_table(page), "the rules have changed: run `make docs`"


def test_a_rule_of_our_own_is_in_the_documentations_table(registry: dict[str, type[Rule]]) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Warm(Rule):
        """The room is warm. Fires when it is above `limit`."""

        managed = None
        limit: float = 1e-9
        strict: bool = True

        def judge(self, run: RunData) -> Finding:
            return insufficient("there is no thermometer")

    after = with_table(f"text\n{BEGIN}\nold rows\n{END}\nmore\n")
    assert "| `Warm` | The room is warm. | limit 1e-09, strict true | none |\n" in after
    assert "old rows" not in after
    assert after.startswith(f"text\n{BEGIN}\n")
    assert after.endswith(f"{END}\nmore\n")
    with pytest.raises(ValueError, match="there is no"):
        with_table("a page without the marks")
