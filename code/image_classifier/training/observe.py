"""Who watches a training: the recorder with its sinks, the sampler, the trace, the rules. Put together for one job."""

from __future__ import annotations

import logging
import math
import platform
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version

from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ClassifierError, describe
from image_classifier.contract.outputs import SETUP
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.door import observers_of
from image_classifier.debugging.hang_watch import HangWatch
from image_classifier.debugging.observer import Observer, Observers
from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rules import parse_rules
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.sampler import SystemSampler
from image_classifier.debugging.saved import read_files
from image_classifier.debugging.schema import JobFacts, Mode, RuleResult, read_job
from image_classifier.debugging.sinks import Background, JsonLines, Sink
from image_classifier.debugging.trace import TraceWindow
from image_classifier.training.hook import Guarded, ManagedHook, SmdebugSink, import_smdebug
from image_classifier.training.setup import Setup
from image_classifier.training.stop import StopFlag

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """The training to watch.

    Args:
        steps_per_epoch: training steps.
        begun: Unix seconds at which this attempt of the job began.
        done: steps made before, in earlier attempts, by mode.
        rank, world_size: of this process; only rank 0 judges and keeps tensors.
        node: `algo-N`, of this host.
        samples_machine: whether this process is the one on its host that does.
    """

    config: TrainConfig
    model: nn.Module
    classes: tuple[str, ...]
    images: Mapping[str, int]
    steps_per_epoch: int
    begun: float
    done: Mapping[Mode, int]
    setup: Setup
    rank: int = 0
    world_size: int = 1
    node: str = "algo-1"
    samples_machine: bool = True


def make_hook(watched: Watched, paths: MlPaths, stop: StopFlag, on_hang: Callable[[RuleResult], None]) -> Observer:
    """The observers of a job as one; what cannot be made is left out with a warning, the training goes on.

    Args:
        on_hang: ends a job that does not follow a rule's stop, see HangWatch.

    Raises:
        ConfigError: `rules` or `stop_on` name a rule that does not exist.
    """
    config, chief = watched.config, watched.rank == 0
    rules, stop_on = parse_rules(config.rules), parse_rules(config.stop_on)
    if not config.debug and not config.profile:
        return Observer()
    try:
        run = prepare_run(watched, paths) if chief else None
        sinks: list[Sink] = [JsonLines(paths.output_data, watched.rank)]
    except (OSError, ClassifierError, ValueError, KeyError, TypeError) as error:  # a full disk; another version's files
        log.warning("no observations: %s", describe(error))
        return Observer()
    members: list[Observer] = []
    if config.debug and chief:
        add_smdebug(members, sinks, watched, paths)
    if config.profile and chief:
        members.append(TraceWindow(paths.output_data, config.trace_steps))
    if config.profile and watched.samples_machine:
        members.append(SystemSampler(paths.output_data, run, node=watched.node))
    recorder = Recorder(
        run,
        sinks,
        watched.model,
        watched.setup.device,
        num_classes=len(watched.classes),
        debug_interval=config.debug_interval if config.debug and chief else 0,
        activation_interval=config.activation_interval if config.debug and chief else 0,
        planned_steps=config.epochs * watched.steps_per_epoch,
        bf16=watched.setup.bf16,
    )
    live = observers_of(recorder, rules, stop_on, folder=paths.output_data, on_stop=stop.fire)
    if live is not None:
        members.append(live)
        if math.isfinite(live.patience_s):
            members.append(HangWatch(live, begun=watched.begun, on_hang=on_hang))
    return Observers([*members, recorder])  # the recorder last: what the others take counts as the step's `hook_s`


def import_ahead(config: TrainConfig, *, is_main: bool) -> None:
    """Imports smdebug beside what follows, which reads files and waits for them: half a second of a core. Who needs it
    waits for the import, and says why where it fails."""

    def load() -> None:
        with suppress(Exception):
            import_smdebug()

    if config.debug and is_main:
        threading.Thread(target=load, name="import of smdebug", daemon=True).start()


def add_smdebug(members: list[Observer], sinks: list[Sink], watched: Watched, paths: MlPaths) -> None:
    """smdebug's part: ours, or as SageMaker's debughookconfig.json says."""
    try:
        if paths.debug_hook_config.is_file():
            members.append(Guarded(ManagedHook(paths, watched.model)))
        else:
            sinks.append(Background(SmdebugSink(paths, watched.model)))
    except Exception as error:  # an import that fails, a broken debughookconfig.json, a full disk
        log.warning("no debug hook: %s", describe(error))


def prepare_run(watched: Watched, paths: MlPaths) -> RunData:
    """Writes setup.json, and returns the run with what earlier attempts left of it."""
    earlier = read_job(paths.output_data)
    job = job_facts(watched)
    if earlier is not None:
        prepared = [*earlier.prepared, 0.0]
        job = replace(job, started=earlier.started, restarts=[*earlier.restarts, job.started], prepared=prepared)
        job = replace(job, preflight=earlier.preflight, replicas=earlier.replicas)
    SETUP.write(paths.output_data, asdict(job))
    return read_files(paths.output, before=watched.done)


def job_facts(watched: Watched) -> JobFacts:
    """What the rules and the report want to know."""
    setup = watched.setup
    return JobFacts(
        config={name: getattr(watched.config, name) for name in watched.config.to_hyperparameters()},
        classes=list(watched.classes),
        images=dict(watched.images),
        steps_per_epoch=watched.steps_per_epoch,
        started=watched.begun,
        cores=setup.cores,
        gpus=list(setup.gpus),
        world_size=watched.world_size,
        workers=setup.workers,
        cached=setup.cached,
        environment={
            "python": platform.python_version(),
            "platform": platform.platform(),
            "host": socket.gethostname(),
            "device": setup.device_name,
            "number format": setup.number_format,
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        },
    )
