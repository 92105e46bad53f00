"""A training that really hangs: noticed while it does, and ended when the rule may stop the job."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from tests.integration.test_train_job import CODE, Job

from image_classifier.contract.errors import EXIT_RULE_FIRED
from image_classifier.debugging.hang_watch import HangWatch
from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.rules import judge
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.framework import MaxInitializationTime
from image_classifier.debugging.rules.waiting import StalledTraining
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.saved import read_files
from image_classifier.debugging.schema import (
    JobFacts,
    RuleResult,
    StepRecord,
    Verdict,
    read_job,
    rule_results_from_json,
)
from image_classifier.vision.sample_data import make_sample_data

PATIENCE_S = 0.3
LOSS, LOGITS, LABELS = torch.tensor(1.0), torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)
# What train.py is in these jobs: the rule's patience is short, and one step never ends.
SCRIPT = """
import sys, threading
from image_classifier.debugging import hang_watch as hang
from image_classifier.debugging.rules.waiting import StalledTraining
from image_classifier.training import loop
from image_classifier.training.script import main

StalledTraining.__init__.__kwdefaults__["threshold_s"] = 15.0
HangWatch = hang.HangWatch.__init__.__kwdefaults__
HangWatch["every_s"], HangWatch["grace_s"] = 0.2, 1.0
train_step, steps = loop.train_step, []

def hang_in_step_9(*arguments, **keywords):
    steps.append(1)
    if len(steps) == 9:
        stuck = threading.Lock()
        stuck.acquire()
        stuck.acquire()
    return train_step(*arguments, **keywords)

loop.train_step = hang_in_step_9
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def hung(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, int, str]:
    """A job that hangs in its second epoch, its exit code and log."""
    data = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(data, num_classes=2, train_per_class=12, valid_per_class=4, test_per_class=2, size=32)
    job = Job(tmp_path_factory.mktemp("job") / "base", data, stop_on="StalledTraining", workers="1", trace_steps="0")
    (job.paths.code / "train.py").write_text(SCRIPT)
    temporary = job.paths.base / "tmp"
    temporary.mkdir()
    with job.start(TMPDIR=str(temporary)) as train:
        log, _ = train.communicate(timeout=300)
    return job, train.returncode, log


def test_a_job_that_hangs_is_ended_by_the_rule_and_says_where_it_stood(hung: tuple[Job, int, str]) -> None:
    job, code, log = hung
    assert code == EXIT_RULE_FIRED, log
    assert "rule StalledTraining: no step ended for" in log
    assert "in hang_in_step_9\n" in log  # the main thread's calls
    message, _, hint = job.failure.partition("\nhint: ")
    assert message.startswith("stopped by rule StalledTraining (no step ended for")
    assert "in epoch 2 of 3, step 2 of 6; it hangs, so what came after the last checkpoint is lost" in message
    assert "stop_on=none" in hint
    assert not list((job.paths.base / "tmp").glob("pymp-*")), "folders of data loading processes stay behind"
    assert not [each for each in psutil.process_iter(["cmdline"]) if str(job.paths.code) in str(each.info["cmdline"])]


def test_what_a_hung_job_leaves_tells_the_same(hung: tuple[Job, int, str]) -> None:
    job, _, log = hung
    data = job.paths.output_data
    live = {each.rule: each for each in rule_results_from_json((data / "rules.json").read_text())}
    assert live["StalledTraining"].verdict is Verdict.ISSUES
    metrics = json.loads((data / "metrics.json").read_text())
    assert metrics["outcome"] == "stopped by a rule"
    assert metrics["epochs"] == 1
    assert json.loads((data / "report.json").read_text())["outcome"]["status"] == "stopped", log
    (again,) = judge(read_files(job.paths.output), [StalledTraining(threshold_s=15.0)])
    assert again.verdict is Verdict.ISSUES


def test_a_hung_job_resumes_from_its_last_checkpoint(hung: tuple[Job, int, str]) -> None:
    job, _, _ = hung
    (job.paths.code / "train.py").write_text((CODE / "train.py").read_text())
    code, log = job.run()
    assert code == 0, log
    assert "resuming from" in log
    facts = read_job(job.paths.output_data)
    assert facts is not None
    assert len(facts.restarts) == 1
    assert facts.started < facts.restarts[0]


DAY_S = 86_400.0


def test_the_time_between_two_attempts_is_no_pause() -> None:
    """The first attempt makes steps at 10 and 11 s; the second begins a day later, with a first step 10 s after."""
    run = RunData(JobFacts(config={}, started=100.0, restarts=[100.0 + DAY_S]))
    for number, at in enumerate((110.0, 111.0, 110.0 + DAY_S)):
        run.add_step(step_at(number, at))
    stalled, start = judge(run, [StalledTraining(), MaxInitializationTime()])
    assert (stalled.verdict, stalled.summary) == (Verdict.NO_ISSUES, "the longest pause between steps was 1.0 s")
    assert (start.verdict, start.summary) == (Verdict.NO_ISSUES, "the first step ended after 10 s")
    run.hear(111.0 + DAY_S + StalledTraining().threshold_s)
    assert judge(run, [StalledTraining()])[0].verdict is Verdict.ISSUES


def test_a_second_attempt_that_does_not_start_is_noticed() -> None:
    run = RunData(JobFacts(config={}, started=100.0, restarts=[100.0 + DAY_S]))
    run.add_step(step_at(0, 110.0))
    run.hear(110.0 + DAY_S)
    assert judge(run, [MaxInitializationTime()])[0].verdict is Verdict.NO_ISSUES
    run.hear(1400.0 + DAY_S)
    stalled, start = judge(run, [StalledTraining(), MaxInitializationTime()])
    assert stalled.verdict is Verdict.NO_ISSUES
    assert (start.verdict, start.summary) == (Verdict.ISSUES, "no step had ended after 1300 s")


def step_at(number: int, at: float) -> StepRecord:
    return StepRecord(step=number, epoch=1, mode="train", time=at, seconds=0.1, images=1, loss=1.0, clean_loss=1.0)


class Watched:
    """Live rules and their watch over a run in which this test makes the steps."""

    def __init__(self, folder: Path, stop_on: tuple[Rule, ...] = (), *, grace_s: float = 0.2) -> None:
        self.begun = time.time()
        self.run = RunData(JobFacts(config={}, started=self.begun))
        self.stops: list[RuleResult] = []
        self.ended = threading.Event()
        rules = (StalledTraining(threshold_s=PATIENCE_S), MaxInitializationTime(threshold_s=PATIENCE_S))
        self.file = folder / "rules.json"
        live = LiveRules(self.run, folder, rules, stop_on, flush=lambda: None, on_stop=self.stops.append)
        self.watch = HangWatch(
            live, begun=self.begun, on_hang=lambda _: self.ended.set(), every_s=0.05, grace_s=grace_s
        )

    def step(self, number: int) -> None:
        self.run.add_step(step_at(number, time.time()))
        self.watch.end_step(LOSS, LOGITS, LABELS)

    def verdicts(self) -> dict[str, Verdict]:
        return {each.rule: each.verdict for each in rule_results_from_json(self.file.read_text())}


def said(caplog: pytest.LogCaptureFixture, rule: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(f"rule {rule}:")]


def wait_for(condition: object) -> None:
    """Up to a minute: how fast a busy machine is, is not what is tested."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:  # type: ignore[operator]
        time.sleep(0.02)


def test_a_pause_is_told_once_while_it_lasts_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watched = Watched(tmp_path)
    watched.step(0)
    wait_for(lambda: said(caplog, "StalledTraining"))
    time.sleep(3 * PATIENCE_S)
    watched.watch.close()
    assert len(said(caplog, "StalledTraining")) == 1
    assert watched.verdicts()["StalledTraining"] is Verdict.ISSUES
    assert not watched.stops
    assert not watched.ended.is_set()


def test_a_job_without_a_first_step_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    watched = Watched(tmp_path)
    wait_for(lambda: said(caplog, "MaxInitializationTime"))
    watched.watch.close()
    assert "no step had ended after" in said(caplog, "MaxInitializationTime")[0]


def test_a_training_that_comes_back_ends_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    watched = Watched(tmp_path, (StalledTraining(threshold_s=PATIENCE_S),), grace_s=600)
    watched.step(0)
    wait_for(lambda: watched.stops)
    watched.step(1)  # the loop sees the flag, and saves its state
    watched.watch.close()
    assert [each.rule for each in watched.stops] == ["StalledTraining"]
    assert not watched.ended.is_set()


def test_a_training_that_hangs_on_is_ended(tmp_path: Path) -> None:
    watched = Watched(tmp_path, (StalledTraining(threshold_s=PATIENCE_S),))
    watched.step(0)
    assert watched.ended.wait(timeout=60)
    watched.watch.close()
    assert [each.rule for each in watched.stops] == ["StalledTraining"]
