"""How the server program is configured and how it says that it is ready.

    ready url=http://127.0.0.1:8080 model=3f2a... engine=openvino/int8 workers=2 startup_s=4.1

The SAGEMAKER_ names are the ones SageMaker and its inference toolkit define; the others are ours.
"""

from __future__ import annotations

import re

PORT_VARIABLE = "SAGEMAKER_BIND_TO_PORT"
DEFAULT_PORT = 8080
MAX_PORT = 65_535
WORKERS_VARIABLE = "SAGEMAKER_MODEL_SERVER_WORKERS"  # processes that answer; default: one a core, if memory allows
PROGRAM_VARIABLE = "SAGEMAKER_PROGRAM"  # a program of the user's that the SDK's Model(entry_point=...) asks for
STARTUP_TIMEOUT_VARIABLE = "SAGEMAKER_STARTUP_TIMEOUT"  # seconds
DEFAULT_STARTUP_TIMEOUT_S = 230  # SageMaker gives a container 4 minutes to pass its first health check
ANSWER_TIMEOUT_VARIABLE = "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"  # from a whole request to its answer
DEFAULT_ANSWER_TIMEOUT_S = 50  # SageMaker gives up after 60 s
MAX_ANSWER_TIMEOUT_S = 3600  # what batch transform waits at most
VM_ARGS_VARIABLE = "SAGEMAKER_MODEL_SERVER_VMARGS"

HOST_VARIABLE = "CLASSIFIER_BIND_TO_HOST"
DEFAULT_HOST = "0.0.0.0"  # noqa: S104  # inside a container; the launcher on this machine passes 127.0.0.1
ACCESS_LOG_VARIABLE = "CLASSIFIER_ACCESS_LOG"  # a file for the line that each request gets; without it, standard output
METRICS_PORT_VARIABLE = "CLASSIFIER_METRICS_PORT"  # GET /metrics on 127.0.0.1, for Prometheus; without it, nowhere
ENGINE_VARIABLE = "CLASSIFIER_ENGINE"
ENGINES = ("auto", "openvino", "torch")  # auto: torch where there is a usable GPU, OpenVINO on the CPU elsewhere

PRECISION_VARIABLE = "CLASSIFIER_SERVE_PRECISION"  # also the variable of the setting `precision` under [serve]
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")  # auto: the fastest here that is good enough
EXPORT_FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}  # format -> suffix of its file

_READY = re.compile(
    r"ready url=(?P<url>\S+) model=(?P<model>\S+) engine=(?P<engine>\S+) workers=\d+ startup_s=[\d.]+\s*"
)


def ready_line(*, url: str, model: str, engine: str, workers: int, startup_s: float) -> str:
    """The one line the server prints on stdout when it answers correctly."""
    return f"ready url={url} model={model} engine={engine} workers={workers} startup_s={startup_s:.1f}"


def parse_ready_line(line: str) -> tuple[str, str] | None:
    """(URL, model fingerprint) of a ready line, None for any other line."""
    match = _READY.fullmatch(line)
    return None if match is None else (match["url"], match["model"])


def ready_engine(line: str) -> str:
    """The engine that a ready line names, e.g. `openvino/int8`; empty for any other line."""
    match = _READY.fullmatch(line)
    return "" if match is None else match["engine"]


def precision_of(engine: str) -> str:
    """The number format of an engine as a ready line names it: `openvino/int8` -> `int8`."""
    return engine.partition("/")[2]
