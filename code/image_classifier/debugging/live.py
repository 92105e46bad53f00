"""The rules in a running job: they speak up after an epoch, may stop the job, and leave rules.json at the end."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from image_classifier.contract.errors import describe
from image_classifier.contract.files import write_text
from image_classifier.contract.outputs import RULES, SETUP
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.rules import judge
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import Mode, RuleResult, Verdict, rule_results_to_json

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

STOP_STEPS = 100  # training steps between two looks of the rules that may stop the job


class LiveRules(Observer):
    """Judges a run while it goes on: of an epoch that ends, all that the recorder saw.

    Args:
        run: filled by a recorder and a sampler.
        flush: brings `run` up to date.
        flush_arrived: the same as far as no GPU is waited for, between two steps; default: `flush`.
        folder: where rules.json goes; None for nowhere.
        stop_on: rules that may stop the job; they are looked at every STOP_STEPS steps and after each epoch.
        on_stop: called with the verdict that stops it, once.
    """

    def __init__(
        self,
        run: RunData,
        folder: Path | None,
        rules: Sequence[Rule],
        stop_on: Sequence[Rule],
        *,
        flush: Callable[[], None],
        flush_arrived: Callable[[], None] | None = None,
        on_stop: Callable[[RuleResult], None],
    ) -> None:
        self._run = run
        self._file = None if folder is None else folder / RULES.name
        self._rules = [*rules, *(rule for rule in stop_on if rule not in rules)]
        self._stop_on = list(stop_on)
        self._flush = flush
        self._flush_arrived = flush if flush_arrived is None else flush_arrived
        self._on_stop = on_stop
        self._clock_rules = [rule for rule in self._rules if math.isfinite(rule.idle_s)]
        self._mode: Mode = "train"
        self._steps = 0
        self._said: set[str] = set()
        self._stopped = False
        self._is_setup_new = False
        self._speaking = threading.Lock()

    @property
    def patience_s(self) -> float:
        """How long no step must have ended before one of the rules about pauses can fire; infinite without them."""
        return min((rule.idle_s for rule in self._clock_rules), default=math.inf)

    def preparing(self, seconds: float) -> None:
        if self._steps > 0:  # it goes on between two steps
            return
        with self._run.lock:
            job = self._run.job
            self._run.job = replace(job, prepared=[*job.prepared[:-1], sum(job.prepared[-1:]) + seconds])
        self._is_setup_new = True

    def preflight(self, found: Mapping[str, Any]) -> None:
        """Judges at once: what is wrong before the first step need not wait for an epoch."""
        self.learn(preflight=dict(found))
        self._write_setup()
        self.look()

    def replicas(self, differing: int) -> None:
        self.learn(replicas=[*self._run.job.replicas, differing])
        self._write_setup()

    def learn(self, **facts: Any) -> None:
        """Keeps something of the job that was not known when it began."""
        with self._run.lock:
            self._run.job = replace(self._run.job, **facts)
        self._is_setup_new = True

    def begin(self, mode: Mode, epoch: int, step: int) -> None:
        self._mode = mode
        self._write_setup()

    def _write_setup(self) -> None:
        if self._is_setup_new and self._file is not None:
            self._is_setup_new = False
            try:
                SETUP.write(self._file.parent, asdict(self._run.job))
            except Exception as error:  # as of the verdicts
                log.warning("what was learned of the job cannot be written: %s", describe(error))

    def end_step(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        self._steps += self._mode == "train"
        if self._stop_on and not self._stopped and self._mode == "train" and self._steps % STOP_STEPS == 0:
            self._flush_arrived()
            self._stop_if_fired(self._judge(self._stop_on))

    def end_epoch(self) -> None:
        if self._mode != "train":  # a training epoch is judged with its validation
            self.look()

    def close(self) -> None:
        self._write_setup()
        self.look()

    def look(self) -> list[RuleResult]:
        """Judges, writes rules.json, and logs what was not said before."""
        self._flush()
        results = self._judge(self._rules)
        self._tell(results)
        return results

    def look_from_outside(self) -> RuleResult | None:
        """As `look`, by another thread while the training stands still: what is on the device is left there, and only
        the rules about pauses are asked, the others once when one of these fires. Returns the verdict of one that fired
        and may stop the job."""
        self._run.hear(time.time())
        fired = [each for each in self._judge(self._clock_rules) if each.verdict is Verdict.ISSUES]
        if any(each.rule not in self._said for each in fired):
            self._tell(self._judge(self._rules))
        names = {rule.name for rule in self._stop_on}
        return next((each for each in fired if each.rule in names), None)

    def _judge(self, rules: Sequence[Rule]) -> list[RuleResult]:
        with self._run.lock:  # the sampler's thread adds to it
            return judge(self._run, rules)

    def _tell(self, results: Sequence[RuleResult]) -> None:
        """Logs what was not said before, writes rules.json, and asks for the stop if it has come to that."""
        with self._speaking:
            for result in results:
                if result.verdict is Verdict.NO_ISSUES and result.rule in self._said:
                    self._said.remove(result.rule)
                    log.info("rule %s takes its finding back: %s", result.rule, result.summary)
                if result.symptom_of:  # its cause has been told
                    continue
                if result.verdict in (Verdict.ISSUES, Verdict.ERROR) and result.rule not in self._said:
                    self._said.add(result.rule)
                    advice = f"; {result.advice}" if result.advice else ""
                    log.warning("rule %s: %s%s", result.rule, result.summary, advice)
            names = {rule.name for rule in self._stop_on}
            self._stop_if_fired([result for result in results if result.rule in names])
            if self._file is None:
                return
            try:
                write_text(self._file, rule_results_to_json(results))
            except Exception as error:  # a full disk must not end the job here: the checkpoint will tell
                log.warning("the rules' verdicts cannot be written: %s", describe(error))

    def _stop_if_fired(self, results: Sequence[RuleResult]) -> None:
        for result in results:
            if result.verdict is Verdict.ISSUES and not self._stopped:
                self._stopped = True
                self._on_stop(result)
