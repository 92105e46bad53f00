"""What the model server's workers call: `handle(None, context)` to load the model, `handle(data, context)` to answer.

Nothing here raises while answering: whatever goes wrong becomes a response, because the server turns exceptions into
answers without a sentence.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.errors import RequestError, describe
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.wire import ENGINE_HEADER, REQUEST_ID_HEADER
from image_classifier.serving.choice import choose
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.codec import Response, encode, encode_error, encode_internal_error, parse_request
from image_classifier.serving.scratch import PRELOAD_VARIABLE, THREADS_VARIABLE, BusyMark, Scratch
from image_classifier.serving.sightings import SightingWriter
from image_classifier.vision.artifact import load_model

_log = logging.getLogger("image_classifier.serving")
_worker: dict[str, Classifier] = {}  # filled at load: a worker is a process with one model
_headers: dict[str, str] = {}  # of every answer, filled at load
_marks: dict[int, BusyMark] = {}  # by process id
_rings: dict[int, SightingWriter | None] = {}  # by process id; None where there is no room for one


def handle(data: Sequence[Mapping[str, object]] | None, context: Any) -> list[bytes] | None:
    """Entry point of multi-model-server, function style.

    Args:
        data: None to load the model; else one mapping a request, with the body under "body" (the server is configured
            for batches of one).
        context: the server's context: request headers in, status and content type out.
    """
    if data is None:
        _load(context)
        return None
    return [_answer(request, index, context) for index, request in enumerate(data)]


def _load(context: Any) -> None:
    """Loads the model and proves it on the golden samples; the server program learns the outcome from the scratch.

    Where the server forks its workers from this process, it is they that report: each has the model from birth, and
    shares its memory with the others.
    """
    _log_to_stderr()
    scratch = Scratch.from_environment()
    try:
        artifact = load_model(MlPaths.from_environment().model)
        threads = int(os.environ.get(THREADS_VARIABLE) or 1)
        classifier, choice = choose(artifact, gpu_id=context.system_properties.get("gpu_id"), threads=threads)
    except Exception as error:
        scratch.report_failure(error)
        raise
    _worker["classifier"] = classifier
    if artifact.manifest.reference:
        classifier.note = _note
    _headers[ENGINE_HEADER] = choice.header
    scratch.write_choice(choice.to_json())
    if os.environ.get(PRELOAD_VARIABLE) != "true":
        scratch.report_loaded(choice.name, forked=False)
        return
    gc.collect()
    gc.freeze()  # a collection would write into, and so copy, every page that holds an object
    os.register_at_fork(after_in_child=lambda: scratch.report_loaded(choice.name, forked=True))


def _answer(request: Mapping[str, object], index: int, context: Any) -> bytes:
    headers: Mapping[str, str] = context.get_all_request_header(index)
    classifier = _worker["classifier"]
    request_id = headers.get(REQUEST_ID_HEADER) or context.get_request_id(index)
    with _mark().busy():
        response = _respond(classifier, headers, request.get("body"), request_id)
    context.set_response_status(response.status, response.phrase, index)
    context.set_response_content_type(index, response.content_type)
    context.set_response_header(index, ENGINE_HEADER, _headers.get(ENGINE_HEADER, classifier.engine.name))
    return response.body


def _mark() -> BusyMark:
    """This process's mark: made with its first request, for a worker may be forked after the model was loaded."""
    process = os.getpid()
    if process not in _marks:
        _marks.clear()
        _marks[process] = Scratch.from_environment().busy_mark()
    return _marks[process]


def _note(pixels: NDArray[np.uint8], probabilities: NDArray[np.float64]) -> None:
    """Leaves what was seen and answered for the drift watch."""
    process = os.getpid()
    if process not in _rings:
        _rings.clear()
        _rings[process] = _make_ring()
    if (ring := _rings[process]) is not None:
        ring.write(pixels, probabilities)


def _make_ring() -> SightingWriter | None:
    try:
        return SightingWriter(Scratch.from_environment().ring)
    except OSError as error:  # a full disk costs the watch, and no answer
        _log.warning("drift: what this worker answers is not watched: %s", describe(error))
        return None


def _respond(classifier: Classifier, headers: Mapping[str, str], body: object, request_id: str) -> Response:
    try:
        request = parse_request(headers, body)
        ranking = classifier.rank(request.image, request.top_k)
        artifact = classifier.artifact
        return encode(
            ranking,
            model=artifact.fingerprint,
            response_type=request.response_type,
            abstain=artifact.manifest.abstains(ranking[0][1]),
        )
    except RequestError as error:
        return encode_error(error)
    except Exception:
        _log.exception("request %s failed", request_id)
        return encode_internal_error(request_id)


def _log_to_stderr() -> None:
    """The server logs a worker's stderr; its stdout is the server's own channel."""
    if not _log.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _log.addHandler(handler)
        _log.propagate = False
