"""Which engine answers here: every number format the model allows is timed on this machine, and the fastest serves.

    choose -> for each format: allowed by its gate? -> loaded -> timed -> golden samples reproduced, if it is the
    fastest so far, or the format of the weights -> the fastest stays

The processor's flags are not asked: with bfloat16 in them a processor may still compute it slower than float32, and a
hypervisor may hide or slow down what they promise.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.endpoint import PRECISION_VARIABLE, PRECISIONS
from image_classifier.contract.errors import ArtifactError, ConfigError, PlatformError
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import FORMATS, Engine, engine_here, folded_weights, load_engine
from image_classifier.serving.requested import OPENVINO, requested_precision
from image_classifier.vision.artifact import Artifact

FORWARDS = 5  # of each candidate, after one that warms up; the fastest counts: others are disturbed by something
HOPELESS = 1.5  # a candidate that takes so many times the best one's time at its first forward is timed no further
AUTO = PRECISIONS[0]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine that answers, and why.

    Args:
        engine: openvino or torch.
        precision: the number format it computes in.
        asked_for: whether the setting named the format; it was not compared with others then.
        forward_ms: milliseconds of one image's forward on this machine; by format, those that were timed.
        gate: what the model says of this format's cost; empty for the format of its weights.
        refused: by format, why it was not considered.
        threads: that compute one image on a CPU.
    """

    engine: str
    precision: str
    asked_for: bool
    forward_ms: Mapping[str, float]
    gate: str
    refused: Mapping[str, str]
    threads: int = 1

    @property
    def name(self) -> str:
        """`openvino/int8`: without spaces, for the ready line."""
        return f"{self.engine}/{self.precision}"

    @property
    def header(self) -> str:
        """For the header of an answer: ASCII, `openvino/int8; forward_ms=7.1`."""
        return f"{self.name}; forward_ms={self.forward_ms[self.precision]:.1f}"

    def to_json(self) -> dict[str, Any]:
        """For /ping's body."""
        return {
            "engine": self.engine,
            "precision": self.precision,
            "threads": self.threads,
            "asked_for": self.asked_for,
            "forward_ms": {name: round(value, 2) for name, value in self.forward_ms.items()},
            "gate": self.gate,
            "refused": dict(self.refused),
        }


def choose(artifact: Artifact, *, gpu_id: int | None = None, threads: int = 1) -> tuple[Classifier, Choice]:
    """Loads the engine for this machine, with the format that the environment asks for or the fastest one allowed.

    A format that is asked for by name serves although its gate says no, with a warning; it must reproduce the golden
    samples all the same.

    Args:
        gpu_id: the GPU this worker was given by the model server; None for the first.
        threads: that compute one image on a CPU.

    Raises:
        ConfigError: an unknown setting, or a format that this engine does not compute in.
        PlatformError: torch was asked for and there is no usable GPU, or the format cannot be computed here.
        ArtifactError: the model cannot be computed, or the golden samples are not reproduced.
    """
    engine, wanted, manifest = engine_here(), requested_precision(), artifact.manifest
    if wanted not in (AUTO, *FORMATS[engine]):
        known = ", ".join((AUTO, *FORMATS[engine]))
        raise ConfigError(f"{PRECISION_VARIABLE} is {wanted}, which {engine} does not compute in", f"known: {known}")
    candidates = FORMATS[engine] if wanted == AUTO else (wanted,)
    weights = folded_weights(artifact) if engine == OPENVINO else None
    best: Classifier | None = None
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    for precision in candidates:
        if reason := manifest.refusal(precision):
            if wanted == AUTO:
                refused[precision] = reason
                _log.info("%s/%s is not considered: %s", engine, precision, reason)
                continue
            _log.warning("%s/%s serves because %s says so: %s", engine, precision, PRECISION_VARIABLE, reason)
        try:
            clocked = _Clocked(
                load_engine(artifact, gpu_id=gpu_id, precision=precision, weights=weights, threads=threads), threads
            )
            candidate, least_ms = Classifier(artifact, clocked), min(times.values(), default=inf)
            is_proved = precision == manifest.precision or not times  # the strictest proof is always asked for
            if is_proved:
                candidate.check_golden()
            found_ms = _forward_ms(candidate, least_ms)
            is_best = found_ms <= least_ms
            if is_best and not is_proved:
                candidate.check_golden()
            candidate.engine = clocked.engine
        except (ArtifactError, PlatformError) as error:
            if wanted != AUTO or precision == manifest.precision:
                raise
            refused[precision] = error.message
            _log.warning("%s/%s is not considered: %s", engine, precision, error.message)
            continue
        times[precision] = found_ms
        if is_best:
            best = candidate
        del candidate, clocked
    if best is None:  # the weights are in a format this engine does not know
        raise ArtifactError(f"the model's precision is {manifest.precision!r}", f"{engine} computes in other formats")
    found = manifest.gates.get(best.engine.precision)
    choice = Choice(
        engine=engine,
        precision=best.engine.precision,
        asked_for=wanted != AUTO,
        forward_ms=times,
        gate="" if found is None else found.sentence,
        refused=refused,
        threads=threads,
    )
    _return_memory()
    timed = ", ".join(f"{name} {value:.1f} ms" for name, value in times.items())
    _log.info("engine: %s (%s a forward here)%s", choice.name, timed, f": {choice.gate}" if choice.gate else "")
    return best, choice


class _Clocked:
    """An engine that notes what its forwards take: those for golden samples tell as much as others.

    Of the processor's time on a CPU where one thread computes: on a machine that is busy with other things, by the
    clock on the wall the format that was disturbed least would be the fastest.
    """

    def __init__(self, engine: Engine, threads: int = 1) -> None:
        self.engine, self.name, self.precision = engine, engine.name, engine.precision
        self.taken_ms: list[float] = []
        self._clock = time.process_time if engine.name == OPENVINO and threads == 1 else time.perf_counter

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        started = self._clock()
        logits = self.engine.logits(image)
        self.taken_ms.append(1000 * (self._clock() - started))
        return logits


def _forward_ms(candidate: Classifier, best: float) -> float:
    """Milliseconds of one forward: the least of some, after one that warms up; of fewer when it cannot beat `best`."""
    engine = candidate.engine if isinstance(candidate.engine, _Clocked) else _Clocked(candidate.engine)
    size = candidate.artifact.preprocessing.image_size
    image = np.random.default_rng(0).standard_normal((3, size, size), dtype=np.float32)
    while len(engine.taken_ms) <= FORWARDS:
        engine.logits(image)
        if min(engine.taken_ms[1:], default=0.0) > HOPELESS * best:
            break
    return min(engine.taken_ms[1:])


def _return_memory() -> None:
    """Gives back what the slower candidates and the compilation had: C libraries keep it, for every worker forked."""
    gc.collect()
    with suppress(AttributeError):  # glibc's; others return memory by themselves
        ctypes.CDLL(None).malloc_trim(0)
