"""Prints what an endpoint answers: as the answers come, and what they are worth where the labels are known."""

from __future__ import annotations

import csv
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from image_classifier.cli import render
from image_classifier.cli.show_data import answered, prediction_table
from image_classifier.cli.targets import Local, Target
from image_classifier.contract.errors import ConfigError, PlatformError, describe
from image_classifier.contract.machine import some_free_port
from image_classifier.contract.text import json_visible
from image_classifier.launch.client import Answer, Client, Connection
from image_classifier.launch.evaluation import ALL_LABELS, Judged, judge
from image_classifier.launch.progress import Counting
from image_classifier.launch.view import tell_findings
from image_classifier.vision.data_set import labelled_images

ON_A_SCREEN = 20  # answers up to which a terminal gets one table, at the end
CONFUSIONS_SHOWN = 10
LOOPBACK = "127.0.0.1"


class AnswerWriter(ABC):
    """Takes answers one by one."""

    @abstractmethod
    def write(self, answer: Answer) -> None:
        """One more."""

    @abstractmethod
    def close(self) -> None:
        """There are no more."""


class AnswerLines(AnswerWriter):
    """An object a line on standard output."""

    def write(self, answer: Answer) -> None:
        print(json_visible(json.dumps(answer.to_json(), ensure_ascii=False)), flush=True)

    def close(self) -> None:
        pass


class AnswerTable(AnswerWriter):
    """On a terminal a table at the end, if it fits on the screen; else a line an answer, columns with tabs between."""

    def __init__(self, total: int, top_k: int) -> None:
        self._collected: list[Answer] = []
        self._keeps = sys.stdout.isatty() and total <= ON_A_SCREEN
        self._many = top_k > 1
        if not self._keeps:
            print("\t".join(("file", "label", "probability", "further")[: 4 if self._many else 3]), flush=True)

    def write(self, answer: Answer) -> None:
        if self._keeps:
            self._collected.append(answer)
            return
        if answer.error:
            cells = [answer.file, f"error: {answer.error}", "", ""]
        else:
            (label, probability), *further = answer.predictions
            cells = [
                answer.file,
                answered(label, abstain=answer.abstain),
                f"{probability:.4f}",
                "  ".join(f"{name} {p:.4f}" for name, p in further),
            ]
        print("\t".join(map(render.flat, cells[: 4 if self._many else 3])), flush=True)

    def close(self) -> None:
        if self._keeps:
            prediction_table(self._collected)


class AnswerCsv(AnswerWriter):
    """A row an answer: file, label and probability of each rank, error."""

    def __init__(self, file: Path, top_k: int, *, with_abstain: bool = False) -> None:
        """With a column `abstain` if asked. Raises PlatformError when the file cannot be written."""
        self._top_k = top_k
        self._with_abstain = with_abstain
        self._path = file
        try:
            self._stream: IO[str] = file.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise PlatformError(f"cannot write {file}: {error.strerror or describe(error)}") from None
        ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
        self._row(
            [
                "file",
                *(f"{name}{rank}" for rank in ranks for name in ("label", "probability")),
                *["abstain"] * with_abstain,
                "error",
            ]
        )

    def write(self, answer: Answer) -> None:
        ranked = [cell for label, share in answer.predictions[: self._top_k] for cell in (label, f"{share:.6f}")]
        unsure = [str(answer.abstain).lower() if answer.predictions else ""] * self._with_abstain
        self._row([answer.file, *ranked, *[""] * (2 * self._top_k - len(ranked)), *unsure, answer.error])

    def close(self) -> None:
        self._stream.close()
        render.note(f"answers: {self._path}")

    def _row(self, cells: Sequence[str]) -> None:
        try:
            csv.writer(self._stream, lineterminator="\n").writerow(cells)
            self._stream.flush()
        except OSError as error:
            raise PlatformError(f"cannot write {self._path}: {error.strerror or describe(error)}") from None


def writer(*, as_json: bool, csv_file: Path | None, top_k: int, total: int, with_abstain: bool = False) -> AnswerWriter:
    """What the flags of predict ask for. Raises PlatformError."""
    if csv_file is not None:
        return AnswerCsv(csv_file, top_k, with_abstain=with_abstain)
    return AnswerLines() if as_json else AnswerTable(total, top_k)


def stream(answers: Iterable[Answer], to: AnswerWriter, total: int) -> int:
    """Writes the answers as they come, and draws how many; returns the exit code, 1 when one is an error."""
    failed = 0
    for answer in _counted(answers, total):
        if answer.note:
            render.note(f"{answer.file}: {answer.note}")
        failed += bool(answer.error)
        to.write(answer)
    to.close()
    if failed:
        render.note(f"{failed} of {total} images could not be classified")
    return 1 if failed else 0


def _counted(answers: Iterable[Answer], total: int) -> Iterator[Answer]:
    """The answers, while a terminal that shows nothing else shows how many came, and when the last one will."""
    if sys.stdout.isatty():
        yield from answers
        return
    with render.Console().live() as live:
        counting = Counting(live, "images answered")
        counting.count(0, total)
        for done, answer in enumerate(answers, 1):
            counting.count(done, total)
            yield answer


def evaluate(target: Target, data: Path, where: str, *, out: Path | None, as_json: bool) -> int:
    """Asks about labelled images and prints what the answers are worth; returns the exit code, 1 when one is an error.

    Raises:
        ConfigError, DataError, PlatformError, JobError: there is nobody to ask, or nothing to ask about.
    """
    images = labelled_images(data)
    tell_findings(images.findings, target.view)
    target.view.note(f"{len(images.files)} images of {images.root} ({images.what})")
    if images.what in {"train", "all"}:
        target.view.warn("a model that was trained on these images knows them: keep some for test")
    with ExitStack() as stack:
        connection = stack.enter_context(_connected(target, where))
        answers = _counted(connection.predict_all(images.files, top_k=ALL_LABELS), len(images.files))
        found = judge(images, answers)
    if out is not None:
        found.write(out)
    if as_json:
        what = {"data": str(data), "what": images.what, "url": connection.url}
        render.document(what | found.to_json())
    else:
        _tables(found)
    for name, reason in list(found.failed.items())[:CONFUSIONS_SHOWN]:
        render.note(f"{name}: {reason}")
    if found.failed:
        render.note(f"{len(found.failed)} of {len(images.files)} images could not be classified")
    return 1 if found.failed else 0


@contextmanager
def _connected(target: Target, where: str) -> Iterator[Connection]:
    """The endpoint that `where` means: an address, a model or run that is served for as long as the block lasts, or
    the one of the settings."""
    if not where:
        yield target.connection()
    elif "://" in where:
        yield Client(where)
    elif not isinstance(target, Local):
        raise ConfigError(f"{where} is no endpoint", "serve it, or evaluate it on this machine with --target local")
    else:
        from image_classifier.launch import serving_run
        from image_classifier.launch.process import Interrupts

        starter, archive = target.starter("serve"), serving_run.find_archive(where, target.runs_dir)
        precision, port = target.settings.serve.precision, some_free_port(LOOPBACK)
        target.view.note(f"serving {archive} for as long as it is asked")
        with (
            Interrupts() as interrupts,
            serving_run.serving(
                archive,
                target.runs_dir,
                interrupts,
                host=LOOPBACK,
                port=port,
                precision=precision,
                starter=starter,
                view=target.view,
            ) as endpoint,
        ):
            yield Client(endpoint.url)


def _tables(found: Judged) -> None:
    low, high = found.interval
    named = {name: f"{value:.4f}" for name, value in found.metrics.items()}
    named["accuracy"] += f" (95 % interval {100 * low:.0f}\u2013{100 * high:.0f} %)"
    render.facts([("images", len(found.rows)), *((name.replace("_", " "), text) for name, text in named.items())])
    render.table(
        ("class", "images", "precision", "recall", "f1"),
        found.per_class(),
        numbers=("images", "precision", "recall", "f1"),
    )
    if wrong := found.confused():
        render.table(("label", "answered", "images"), wrong[:CONFUSIONS_SHOWN], title="confusions", numbers=("images",))
    render.table(
        ("probability", "images", "mean probability", "accuracy"),
        [
            (f"{each.low:.1f}-{each.high:.1f}", each.images, f"{each.confidence:.3f}", f"{each.accuracy:.3f}")
            for each in found.bins
        ],
        title="calibration",
        numbers=("images", "mean probability", "accuracy"),
    )
