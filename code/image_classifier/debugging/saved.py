"""A run from what it saved: its files, whole or part by part, or the tensors that smdebug wrote."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import DataError, PlatformError, describe
from image_classifier.contract.installation import how_to_install
from image_classifier.contract.outputs import CLASSES, SETUP, STATISTICS, STEPS, SYSTEM_FOLDER
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import (
    ClassCounts,
    JobFacts,
    Mode,
    StatisticsRecord,
    StepRecord,
    each_sample,
    each_statistics,
    each_step,
    other_ranks,
    read_classes,
    read_job,
)
from image_classifier.debugging.smdebug_loading import make_importable, pandas_when_used
from image_classifier.debugging.smdebug_names import HITS, LABELS, LOSS, MODE_NAMES, STEP_FACTS, parse_tensor_name

ATTEMPT = re.compile(r"attempt-(\d+)")


PEERS = "steps of the other processes"  # a part of a run
SYSTEM = SYSTEM_FOLDER.rpartition("/")[0]  # another
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What could be read of a run's files.

    Args:
        run: what they hold.
        absent: parts that are not there, or are empty: names of files, PEERS, SYSTEM.
        damaged: part -> why it could not be read; nothing of it is in `run`.
    """

    run: RunData
    absent: frozenset[str]
    damaged: Mapping[str, Exception]


def read_files(folder: Path, before: Mapping[Mode, int] | None = None) -> RunData:
    """A run from its files (schema.py), without other processes' steps; what is missing there is missing in the run.

    Args:
        folder: output, or output/data, or the folder output.tar.gz was unpacked in.
        before: of each mode, only the steps below this; for a job that goes on from there.

    Raises:
        DataError: a file is damaged, by more than a line that was cut off, or from another version.
    """
    data = _data_of(folder)
    saved = _read(folder, before, peers=False)
    for error in saved.damaged.values():
        if isinstance(error, OSError):
            raise error
        raise DataError(
            f"the recordings in {data} are damaged: {describe(error)}",
            "`--tensors` judges by what smdebug saved instead",
        ) from error
    return saved.run


def read_parts(folder: Path) -> Saved:
    """All that can be read of a run's files, those of other processes too. A damaged part is left out.

    Args:
        folder: as of `read_files`.
    """
    return _read(folder, None, peers=True)


def _data_of(folder: Path) -> Path:
    return folder / "data" if (folder / "data").is_dir() else folder


def _read(folder: Path, before: Mapping[Mode, int] | None, *, peers: bool) -> Saved:
    data = _data_of(folder)
    absent: set[str] = set()
    damaged: dict[str, Exception] = {}

    def part(name: str, read: Callable[[], Any]) -> Any:
        """What `read` returns, None when it fails."""
        try:
            found = read()
        except _DAMAGE as error:
            damaged[name] = error
            return None
        if not found:
            absent.add(name)
        return found

    def counts(mode: Mode, step: int) -> bool:
        return before is None or step < before[mode]

    run = RunData(part(SETUP.name, lambda: read_job(data)) or JobFacts(config={}))
    part(STEPS.name, lambda: run.add_steps(each for each in each_step(data) if counts(each.mode, each.step)))
    part(STATISTICS.name, lambda: run.add_all_statistics(s for s in each_statistics(data) if counts("train", s.step)))
    part(CLASSES.name, lambda: run.add_all_classes(c for c in read_classes(data) if counts(c.mode, c.step)))
    part(SYSTEM, lambda: run.add_samples(each_sample(folder)))
    if peers:
        run.peers = part(PEERS, lambda: {rank: _peer(data, rank, run.job) for rank in other_ranks(data)}) or {}
    return Saved(run=run, absent=frozenset(absent), damaged=damaged)


def _peer(data: Path, rank: int, job: JobFacts) -> RunData:
    run = RunData(job)
    run.add_steps(each_step(data, rank))
    return run


def read_trial(folder: Path, job: JobFacts | None = None) -> RunData:
    """A run from smdebug's files: losses, classes and tensors; neither times nor system metrics are in there.

    Args:
        folder: of one attempt (`output/tensors/attempt-1`), or of all (`output/tensors`). On this machine: smdebug's
            own reader of S3 waits for ever for what is not there.
        job: what is known of the job; without it, rules cannot name its hyperparameters.

    Raises:
        DataError: there are no such files, or they cannot be read.
        PlatformError: smdebug is not installed.
    """
    run = RunData(job or JobFacts(config={}))
    steps: dict[tuple[Mode, int], StepRecord] = {}
    statistics: dict[int, StatisticsRecord] = {}
    classes: dict[tuple[Mode, int], ClassCounts] = {}
    for attempt in _attempts(folder):  # a step that was made again counts as it was made last
        trial = _Trial(attempt)
        steps |= trial.steps()
        statistics |= trial.statistics()
        classes |= trial.classes()
    for key in sorted(steps, key=lambda key: key[1]):
        run.add_step(steps[key])
    for step in sorted(statistics):
        run.add_statistics(statistics[step])
    for counts in sorted(classes.values(), key=lambda counts: counts.step):
        run.add_classes(counts)
    return run


def holds_tensors(folder: Path) -> bool:
    """Whether `read_trial` finds something there."""
    return bool(_find_attempts(folder))


def _attempts(folder: Path) -> list[Path]:
    found = _find_attempts(folder)
    if not found:
        raise DataError(f"{folder} holds no tensors of smdebug", "name the tensors folder of a job's output")
    return found


def _find_attempts(folder: Path) -> list[Path]:
    """The folder itself or those of its attempts, in their order."""
    numbered = [(int(match[1]), each) for each in folder.glob("attempt-*") if (match := ATTEMPT.fullmatch(each.name))]
    attempts = [each for _, each in sorted(numbered)] or [folder]
    return [each for each in attempts if (each / "collections").is_dir()]


class _Trial:
    """One folder that a hook of ours wrote, through smdebug's own reader."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("SMDEBUG_LOG_LEVEL", "error")
        os.environ.setdefault(
            "SMDEBUG_TRAINING_END_DELAY_REFRESH", "0"
        )  # seconds it waits for more of a run that has ended
        logging.getLogger("smdebug").setLevel(logging.ERROR)
        try:
            make_importable()
            with pandas_when_used():
                from smdebug import modes
                from smdebug.trials import create_trial
        except ImportError as error:
            raise PlatformError(
                f"smdebug cannot be loaded: {describe(error)}", f"judge by the files, or {how_to_install('train')}"
            ) from error
        try:
            self._trial: Any = create_trial(str(folder))
            self._names: list[str] = self._trial.tensor_names()
        except Exception as error:  # smdebug and boto raise many types on files that are damaged or not there
            raise DataError(f"the tensors in {folder} cannot be read: {describe(error)}") from error
        self._modes: Mapping[Mode, Any] = {mode: modes[name] for mode, name in MODE_NAMES.items()}

    def steps(self) -> dict[tuple[Mode, int], StepRecord]:
        """Losses of every step; times are not kept."""
        found = {}
        for mode in MODE_NAMES:
            losses = self._values(LOSS, mode)
            for step, (epoch, images, clean_loss) in self._values(STEP_FACTS, mode).items():
                found[mode, step] = StepRecord(
                    step=step,
                    epoch=int(epoch),
                    mode=mode,
                    time=0.0,
                    seconds=0.0,
                    images=int(images),
                    loss=float(losses[step].item()),
                    clean_loss=float(clean_loss),
                )
        return found

    def statistics(self) -> dict[int, StatisticsRecord]:
        """All reduced tensors, by step."""
        model = next((m.group(1) for name in self._names if (m := re.match(r"gradient/([^_]+)_", name))), "")
        found: dict[int, dict[str, dict[str, dict[str, float]]]] = {}
        for tensor_name in self._names:
            parsed = parse_tensor_name(tensor_name, model)
            if parsed is None:
                continue
            kind, name = parsed
            tensor = self._trial.tensor(tensor_name)
            for step in tensor.steps(mode=self._modes["train"]):
                values = tensor.reduction_values(step, mode=self._modes["train"])
                numbers = {_statistic(*key): float(value.item()) for key, value in values.items()}
                if numbers:
                    found.setdefault(step, {}).setdefault(kind, {})[name] = numbers
        return {step: StatisticsRecord(step=step, **parts) for step, parts in found.items()}

    def classes(self) -> dict[tuple[Mode, int], ClassCounts]:
        """Label and hit counts, at the last step of each epoch."""
        found = {}
        for mode in MODE_NAMES:
            labels, hits, facts = (self._values(name, mode) for name in (LABELS, HITS, STEP_FACTS))
            for step, counts in labels.items():
                found[mode, step] = ClassCounts(
                    mode=mode,
                    step=step,
                    epoch=int(facts[step][0]),
                    labels=tuple(int(count) for count in counts),
                    hits=tuple(int(count) for count in hits[step]),
                )
        return found

    def _values(self, name: str, mode: Mode) -> dict[int, Any]:
        if name not in self._names:
            return {}
        tensor = self._trial.tensor(name)
        return {step: tensor.value(step, mode=self._modes[mode]) for step in tensor.steps(mode=self._modes[mode])}


def _statistic(reduction: str, absolute: bool) -> str:
    return f"abs_{reduction}" if absolute else reduction
