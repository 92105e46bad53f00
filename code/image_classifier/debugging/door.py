"""The door for any training in torch: a few lines around a loop, and the recorder and the rules watch it.

    with watch(model, optimizer) as seen:
        for images, labels in loader:
            logits = model(images)
            loss = criterion(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.step(loss, logits, labels)
    for finding in seen.findings:
        print(finding.rule, finding.summary, finding.advice)

Any nn.Module, any loss. Nothing of torch is replaced: what is registered stands on this model, this optimiser and one
of its parameters, and is gone at the end of the block. What the watching itself gets wrong is a warning; the training
goes on. The project's own trainings go through `observers_of`, as this does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn
from torch.utils.hooks import RemovableHandle

from image_classifier.contract.errors import describe
from image_classifier.contract.outputs import SETUP
from image_classifier.debugging.fresh_weights import fresh_layers
from image_classifier.debugging.live import LiveRules
from image_classifier.debugging.observer import Observers
from image_classifier.debugging.optimizerstats import FreshGradient, optimizer_statistics
from image_classifier.debugging.outputstats import behaves_by_mode
from image_classifier.debugging.preflight import Criterion, look_ahead
from image_classifier.debugging.probes import bend, untrained_leaves
from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rules import judge, parse_rules
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts, RuleResult, Verdict
from image_classifier.debugging.sinks import JsonLines, Sink
from image_classifier.debugging.tensorstats import unwrap

log = logging.getLogger(__name__)
INTERVAL = 100  # steps between statistics; the first are recorded more often
ACTIVATION_INTERVAL = 500
BENDS = (0, 5, 20)  # steps, of those that are recorded, at which the network is asked whether it bends its inputs
STRAIGHT = 1e-3  # what bends less may do so because its branches begin at zero


def observers_of(
    recorder: Recorder,
    rules: Sequence[Rule],
    stop_on: Sequence[Rule],
    *,
    folder: Path | None,
    on_stop: Callable[[RuleResult], None],
) -> LiveRules | None:
    """The rules that judge what a recorder sees while it goes on; None where nobody judges (all ranks but 0)."""
    if recorder.run is None:
        return None
    return LiveRules(
        recorder.run,
        folder,
        rules,
        stop_on,
        flush=recorder.flush,
        flush_arrived=lambda: recorder.flush(wait=False),
        on_stop=on_stop,
    )


def watch(
    model: nn.Module,
    optimizer: Any = None,
    *,
    classes: Sequence[str] | int = (),
    epochs: int = 0,
    steps_per_epoch: int = 0,
    folder: Path | str | None = None,
    rules: str = "all",
    stop_on: str = "none",
    interval: int = INTERVAL,
    activation_interval: int = ACTIVATION_INTERVAL,
    loss_falls: bool = True,
    config: Mapping[str, Any] | None = None,
) -> Watch:
    """Watches a training within a `with` block.

    Args:
        model: any network, compiled, wrapped or bare.
        optimizer: a torch.optim.Optimizer. Without it, or with one of another kind (a Keras optimizer), call `step`
            while the gradients are still there.
        classes: their names or their number, for a classifier; without them, rules about classes have no data.
        epochs, steps_per_epoch: planned, as far as that is known: rules scale to them.
        folder: where setup.json, steps.jsonl, statistics.jsonl, classes.jsonl and rules.json go, for
            `deploy.py rules FOLDER`; nowhere without it.
        rules, stop_on: names with commas, `all` or `none`; one of `stop_on` that fires sets `stop_reason`.
        interval, activation_interval: steps between statistics; the first steps are recorded besides.
        loss_falls: False where a good training's loss need not fall: networks against each other, policy gradients.
        config: what advice may name: lr, batch_size, ...

    Raises:
        ConfigError: there is no such rule.
    """
    names = [str(each) for each in range(classes)] if isinstance(classes, int) else list(classes)
    job = JobFacts(
        config={
            **_hyperparameters(optimizer),
            **({"epochs": epochs} if epochs else {}),
            **({} if loss_falls else {"loss_falls": False}),
            **(config or {}),
        },
        classes=names,
        steps_per_epoch=steps_per_epoch,
        started=time.time(),
    )
    return Watch(
        model,
        optimizer,
        job=job,
        folder=None if folder is None else Path(folder),
        rules=parse_rules(rules),
        stop_on=parse_rules(stop_on),
        interval=interval,
        activation_interval=activation_interval,
    )


class Watch:
    """What `watch` returns: told of each step, it records and judges.

    Attributes:
        run: what was seen.
        stop_reason: the finding of a rule of `stop_on`, None as long as the training may go on.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any,
        *,
        job: JobFacts,
        folder: Path | None,
        rules: Sequence[Rule],
        stop_on: Sequence[Rule],
        interval: int,
        activation_interval: int,
    ) -> None:
        self.run = RunData(job)
        self.stop_reason: RuleResult | None = None
        self._model, self._rules, self._folder = model, rules, folder
        self._optimizer = optimizer if hasattr(optimizer, "register_step_pre_hook") else None
        sinks: list[Sink] = []
        if folder is not None:
            sinks.append(JsonLines(folder))
            SETUP.write(folder, asdict(job))
        device = next((each.device for each in model.parameters()), torch.device("cpu"))
        self._recorder = Recorder(
            self.run,
            sinks,
            model,
            device,
            num_classes=len(job.classes),
            debug_interval=interval,
            activation_interval=activation_interval,
            planned_steps=int(job.config.get("epochs", 0)) * job.steps_per_epoch,
        )
        self._live = live = observers_of(self._recorder, rules, stop_on, folder=folder, on_stop=self._stop)
        self._observers = Observers([*([live] if live else []), self._recorder])
        self._handles: list[Any] = []
        self._watching: RemovableHandle | None = None
        self._fresh: FreshGradient | None = None
        self._epoch, self._mode = 1, "train"
        self._counts = {"train": 0, "eval": 0}
        self._looked, self._bends = False, False  # at the inputs of this step; whether the layers are known to

    def __enter__(self) -> Self:
        self._observers.begin("train", 1, 0)
        self._guarded(self._register)
        self._guarded(self._look_at_frozen)
        if self._optimizer is None:
            self._recorder.weights_before()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in [*self._handles, *([] if self._watching is None else [self._watching])]:
            handle.remove()
        self._handles.clear()
        self._watching = None
        if self._mode == "eval" or self._counts["train"]:
            self._observers.end_epoch()
        self.run.finished = True
        self._observers.close()

    def preflight(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        criterion: Criterion = F.cross_entropy,
        *,
        plain: torch.Tensor | None = None,
    ) -> None:
        """Looks at a copy of the network and a batch, before the first step; the training is the same with and without.

        Args:
            inputs: (n, ...), of two images or more, best of 32.
            labels: (n,) int64 of classes, or what the criterion takes.
            criterion: outputs and labels -> scalar.
            plain: the same inputs without augmentation.
        """
        try:
            with self._unseen():
                found = look_ahead(self._model, inputs.detach(), labels, criterion, plain=plain)
        except Exception as error:  # any: as of all that watches
            log.warning("no preflight: %s", describe(error))
        else:
            self._observers.preflight(found)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Nothing stands on the network while it is copied."""
        own = self._watching
        if own is not None:
            own.remove()
        try:
            yield
        finally:
            if own is not None:
                self._stand()

    def step(
        self,
        loss: torch.Tensor,
        logits: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        inputs: torch.Tensor | None = None,
    ) -> None:
        """A training step has ended: the optimiser has made its own.

        Args:
            loss: scalar, the one that was minimised.
            logits: (n, ...) what the network gave.
            labels: (n,) int64 of classes, or what the outputs should have been.
            inputs: (n, ...), where the network is not called as a module.
        """
        self._train_again()
        if inputs is not None:
            self._see_inputs(inputs)
        if logits is not None and logits.grad_fn is not None and self._recorder.records_this_step:
            self._guarded(lambda: self._look_for_strangers(logits))
        if self._optimizer is None:
            self._recorder.gradients_now()
            self._recorder.after_update()
        self._end(loss, logits, labels)
        self._looked = False
        if self._optimizer is None:
            self._recorder.weights_before()

    def validation(
        self, loss: torch.Tensor, logits: torch.Tensor | None = None, labels: torch.Tensor | None = None
    ) -> None:
        """A batch was evaluated. The first after a training step ends the epoch's training, the next training step the
        epoch."""
        if self._mode == "train":
            self._recorder.end_epoch()
            self._begin("eval")
            if self._live is not None and behaves_by_mode(unwrap(self._model)):
                self._live.learn(validated_in_training=self.run.job.validated_in_training + 1)
        self._end(loss, logits, labels)

    def end_epoch(self) -> None:
        """An epoch without a validation is over."""
        if self._mode == "train":
            self._recorder.end_epoch()
            self._epoch += 1
            self._begin("train")

    @property
    def results(self) -> list[RuleResult]:
        """Every rule's verdict on what was seen so far."""
        self._recorder.flush()
        return judge(self.run, self._rules)

    @property
    def findings(self) -> list[RuleResult]:
        """The rules that fired, but for symptoms of others and for what only informs."""
        fired = [each for each in self.results if each.verdict is Verdict.ISSUES]
        return [each for each in fired if not each.symptom_of and each.severity != "info"]

    def _train_again(self) -> None:
        """The epoch is over with its validation, if there was one."""
        if self._mode == "eval":
            self._observers.end_epoch()
            self._epoch += 1
            self._begin("train")

    def _begin(self, mode: Any) -> None:
        self._mode = mode
        self._observers.begin(mode, self._epoch, self._counts[mode])

    def _end(self, loss: torch.Tensor, logits: torch.Tensor | None, labels: torch.Tensor | None) -> None:
        self._counts[self._mode] += 1
        shown = loss.detach().reshape(1, 1) if logits is None else logits
        truth = shown.detach() if labels is None else labels
        self._observers.end_step(loss.detach().float().mean(), shown, truth)

    def _register(self) -> None:
        network = unwrap(self._model)
        self._stand()
        if self._optimizer is not None:
            self._fresh = FreshGradient(network, self._optimizer, lambda: self._recorder.records_this_step)
            self._handles += [
                *self._fresh.handles,
                self._optimizer.register_step_pre_hook(self._before_update),
                self._optimizer.register_step_post_hook(self._after_update),
            ]

    def _look_at_frozen(self) -> None:
        network = unwrap(self._model)
        if self._live is not None and not all(each.requires_grad for each in network.parameters()):
            self._live.learn(preflight={"frozen": fresh_layers(network)})

    def _stand(self) -> None:
        self._watching = unwrap(self._model).register_forward_pre_hook(self._before_forward)

    def _before_forward(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs = next((each for each in arguments if isinstance(each, torch.Tensor)), None)
        if not module.training:
            return
        if torch.is_grad_enabled() and not self.run.job.validated_in_training:
            self._train_again()
        if inputs is not None:
            self._see_inputs(inputs)

    def _see_inputs(self, inputs: torch.Tensor) -> None:
        if self._looked or self._mode != "train" or not inputs.is_floating_point() or inputs.ndim < 2:
            return
        if inputs.is_meta:  # Keras asks a network for its shapes before it is trained
            return
        self._looked = True  # the recorder calls the network once more
        if self._counts["train"] in BENDS and not self._bends:
            self._guarded(lambda: self._look_for_bends(inputs.detach()))
        self._recorder.before_forward(inputs.detach())

    def _look_for_bends(self, inputs: torch.Tensor) -> None:
        found = bend(unwrap(self._model), inputs)
        self._bends = found is None or found > STRAIGHT
        if found is not None:
            self._recorder.add_batch("network", {"bend": torch.tensor(found, device=inputs.device)})

    def _look_for_strangers(self, logits: torch.Tensor) -> None:
        groups = [] if self._optimizer is None else self._optimizer.param_groups
        known = [*unwrap(self._model).parameters(), *(each for group in groups for each in group["params"])]
        outside = untrained_leaves(logits, known)
        self._recorder.add_batch("graph", {"outside": torch.tensor(float(outside), device=logits.device)})

    def _before_update(self, *_: Any) -> None:
        self._train_again()  # the first step after a validation is recorded, too
        if self._recorder.records_this_step:
            self._guarded(self._look_at_optimizer)
        self._recorder.after_backward()

    def _look_at_optimizer(self) -> None:
        network = unwrap(self._model)
        device = next((each.device for each in network.parameters()), torch.device("cpu"))
        numbers = optimizer_statistics(network, self._optimizer)
        self._recorder.add_batch("optimizer", {k: torch.tensor(v, device=device) for k, v in numbers.items()})
        if self._fresh is not None and (stale := self._fresh.stale()) is not None:
            self._recorder.add_batch("gradient", {"stale": stale})

    def _after_update(self, *_: Any) -> None:
        self._recorder.after_update()

    def _stop(self, result: RuleResult) -> None:
        self.stop_reason = result

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # any: the watching is worth less than the training
            log.warning("the training is watched in part only: %s", describe(error))


def _hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The learning rate it starts with, where it can be asked."""
    groups = getattr(optimizer, "param_groups", None) or []
    rates = [group["lr"] for group in groups if isinstance(group.get("lr"), float)]
    return {"lr": max(rates)} if rates else {}
