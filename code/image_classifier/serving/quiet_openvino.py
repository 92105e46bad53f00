"""OpenVINO without its telemetry: the one place that imports it.

`import openvino` starts openvino_telemetry, which reports to Google Analytics unless it has been told not to, writes an
identifier below HOME and may wait three seconds for an answer. A server that sees other people's photographs calls
nobody: the package counts as not installed here, with which OpenVINO gets along (2026.4: `telemetry_utils.py` and
`telemetry_stub.py` in `openvino/tools/ovc`).
"""

from __future__ import annotations

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # an import of it raises ImportError

import openvino  # noqa: E402  # not before the line above
from openvino import opset13 as ops  # noqa: E402

__all__ = ["openvino", "ops"]
