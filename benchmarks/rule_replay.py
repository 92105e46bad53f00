"""What the rules say of a recorded run: at its end, and live on the way, where `stop_on` would act."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.rules import judge
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import (
    ClassCounts,
    JobFacts,
    RuleResult,
    StatisticsRecord,
    StepRecord,
    SystemSample,
    read_classes,
    read_job,
    read_statistics,
    read_steps,
    read_system,
)

Record = StepRecord | StatisticsRecord | ClassCounts | SystemSample
NOTHING = torch.empty(0)  # LiveRules looks at the run, not at what end_step is told


@dataclass(frozen=True)
class Recording:
    """One run: what is known of the job, and its records in the order in which they were made.

    A step's statistics come before the step, an epoch's classes after its last step.
    """

    job: JobFacts
    records: Sequence[Record]


@dataclass(frozen=True)
class Judgement:
    """Of one recording: the verdicts at the end, and for each rule that would have stopped it, after what share of the
    training steps (1: with the last epoch's validation)."""

    results: Sequence[RuleResult]
    stops: dict[str, float]


class Keeper:
    """A recorder's sink that keeps the records."""

    name = "Keeper"

    def __init__(self) -> None:
        self.records: list[Record] = []

    def add(self, record: StepRecord, statistics: StatisticsRecord | None) -> None:
        """One step."""
        if statistics is not None:
            self.records.append(statistics)
        self.records.append(record)

    def add_classes(self, counts: ClassCounts) -> None:
        """The end of an epoch."""
        self.records.append(counts)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def read_recording(data: Path) -> Recording:
    """A finished job's recording, from its output/data."""
    statistics = {each.step: each for each in read_statistics(data)}
    classes = {(each.mode, each.step): each for each in read_classes(data)}
    records: list[Record] = list(read_system(data))
    for step in read_steps(data):
        if step.mode == "train" and step.step in statistics:
            records.append(statistics[step.step])
        records.append(step)
        if (step.mode, step.step) in classes:
            records.append(classes[step.mode, step.step])
    job = read_job(data)
    if job is None:
        raise FileNotFoundError(f"{data} holds no job.json")
    return Recording(job, in_order(records))


def in_order(records: Iterable[Record]) -> list[Record]:
    """By time; a record without one stays behind the record it follows."""
    now, timed = 0.0, []
    for record in records:
        now = record.time if isinstance(record, (StepRecord, SystemSample)) else now
        timed.append((now, record))
    return [record for _, record in sorted(timed, key=lambda each: each[0])]


def judge_recording(recording: Recording, rules: Sequence[Rule]) -> Judgement:
    """Plays the run to LiveRules, to one for each rule, as if that rule were the job's `stop_on`."""
    run = RunData(recording.job)
    total = sum(isinstance(record, StepRecord) and record.mode == "train" for record in recording.records)
    stops: dict[str, float] = {}

    def stop(result: RuleResult) -> None:
        stops[result.rule] = len(run.step("train", "loss")) / total

    with TemporaryDirectory() as folder:
        lives = [LiveRules(run, Path(folder), (), (rule,), flush=lambda: None, on_stop=stop) for rule in rules]
        play(recording.records, run, lives)
        return Judgement(judge(run, rules), stops)


def play(records: Sequence[Record], run: RunData, lives: Sequence[LiveRules]) -> None:
    """Fills the run record by record, and tells each of `lives` what a training would."""
    now: StepRecord | None = None
    for record in [*records, None]:
        epoch_is_over = record is None or (
            isinstance(record, StepRecord) and now is not None and (record.mode, record.epoch) != (now.mode, now.epoch)
        )
        if epoch_is_over:
            for live in lives:
                live.end_epoch()
        match record:
            case StepRecord():
                run.add_step(record)
                for live in lives:
                    live.begin(record.mode, record.epoch, record.step)
                    live.end_step(NOTHING, NOTHING, NOTHING)
                now = record
            case StatisticsRecord():
                run.add_statistics(record)
            case ClassCounts():
                run.add_classes(record)
            case SystemSample():
                run.add_system(record)
