"""A polite stop: SIGTERM and SIGINT set a flag that the loop looks at between steps."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from multiprocessing import util
from types import FrameType

from image_classifier.contract.errors import JobStopped, RuleFired
from image_classifier.contract.outputs import stop_message
from image_classifier.debugging.schema import RuleResult


class Interrupted(Exception):
    """The stop flag was set in the middle; nothing of what was begun counts."""


class StopFlag:
    """Remembers the first stop signal, or the rule that asks for a stop.

    A second one changes nothing: the state is being saved already.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.rule: RuleResult | None = None

    def fire(self, result: RuleResult) -> None:
        """A rule of the debugger asks for the stop."""
        if self.reason is None:
            self.rule, self.reason = result, f"rule {result.rule} ({result.summary})"

    def forget_rule(self) -> None:
        """A rule's stop comes too late; a signal's stays."""
        if self.rule is not None:
            self.rule = self.reason = None

    def error(self, where: str, how_to_resume: str) -> JobStopped:
        """What to raise once the state is saved."""
        message = stop_message(str(self.reason), where)
        if self.rule is None:
            return JobStopped(message, how_to_resume)
        return RuleFired(message, f"{self.rule.advice}; or {how_to_resume} with stop_on=none")

    def install(self) -> None:
        """Handles SIGTERM (spot interruption, StopTrainingJob, `docker stop`) and SIGINT (Ctrl-C) from now on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.reason is not None


def ignore_stop_signals() -> None:
    """For data loading processes: a signal to the whole group must not kill them under the loop that stops them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def share_temporary_folder() -> None:
    """Before data loading processes are forked: they keep their sockets in this process's folder, not each in one of
    its own, which a killed process leaves behind."""
    util.get_temp_dir()


def remove_temporary_folder() -> None:
    """For an end by `os._exit`, which calls nothing that would remove it."""
    shutil.rmtree(util.get_temp_dir(), ignore_errors=True)


def end_workers() -> None:
    """Kills the data loading processes that are left, at the end of a job.

    They ignore SIGTERM, and SIGTERM is what Python sends them at its exit before it waits for them, for ever.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as killed
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.kill()
    for worker in workers:  # they give their memory back side by side
        worker.join()
