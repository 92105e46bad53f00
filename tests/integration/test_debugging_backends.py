"""One run, three ways to know it: in memory, from its files, from smdebug's. The rules say the same of all three."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from benchmarks.rule_cases import CASES
from benchmarks.rule_runs import train
from torch import nn

from image_classifier.contract.errors import DataError
from image_classifier.contract.files import write_text
from image_classifier.contract.outputs import SETUP
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.sampler import SystemSampler
from image_classifier.debugging.saved import read_files, read_trial
from image_classifier.debugging.schema import RuleResult, Verdict, read_system, rule_results_to_json, to_json
from image_classifier.debugging.sinks import JsonLines
from image_classifier.training.hook import SmdebugSink

pytestmark = pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023
RUNS = ("healthy: residual, zero init", "learning rate far too high", "layer not given to the optimiser")


def of_tensors(run: RunData) -> list[RuleResult]:
    return judge(run, [rule for rule in parse_rules("all") if rule.about == "tensors"])


def as_text(results: list[RuleResult]) -> str:
    """Comparable also where a value is NaN."""
    return rule_results_to_json(results)


@pytest.mark.parametrize("name", RUNS)
def test_live_files_and_trial_give_the_same_verdicts(name: str, tmp_path: Path) -> None:
    case = dataclasses.replace(CASES[name], epochs=4)
    paths = MlPaths(base=tmp_path)
    sampler = SystemSampler(paths.output_data, interval_s=0.1)
    live = train(case, 0, (SmdebugSink(paths, nn.Sequential()), JsonLines(paths.output_data)))
    time.sleep(0.2)
    sampler.close()
    for sample in read_system(paths.output):
        live.add_system(sample)
    write_text(paths.output_data / SETUP.name, to_json(live.job))
    files = read_files(paths.output)
    everything = parse_rules("all")
    assert as_text(judge(files, everything)) == as_text(judge(live, everything))
    trial = read_trial(paths.tensors, live.job)
    assert as_text(of_tensors(trial)) == as_text(of_tensors(live))
    fired = {result.rule for result in of_tensors(live) if result.verdict is Verdict.ISSUES}
    assert {rule.__name__ for rule in case.rules} <= fired
    assert bool(fired) == bool(case.rules)


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tensors of smdebug"):
        read_trial(tmp_path)
