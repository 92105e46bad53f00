"""What turns a tensor into logits: OpenVINO on the CPU, torch on a GPU. Both compute at the artifact's precision."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.endpoint import ENGINE_VARIABLE, ENGINES
from image_classifier.contract.errors import ArtifactError, ConfigError, PlatformError
from image_classifier.vision.artifact import Artifact

PRECISIONS = ("float32", "bfloat16")

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """A loaded network."""

    name: str

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(3, H, W) float32 -> (num_classes,) float32. Raises ValueError on another shape."""


class OpenVinoEngine:
    """ResNet50 on the CPU, one thread: a server has one process a core, and threads would only fight over cores."""

    name = "openvino"

    def __init__(self, artifact: Artifact) -> None:
        from safetensors.numpy import load_file

        from image_classifier.serving.openvino_resnet import resnet50
        from image_classifier.serving.quiet_openvino import openvino

        size = artifact.preprocessing.image_size
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # every worker would be pinned to the same core
            # named in full because the default is bf16 on processors that have it
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[_precision(artifact)],
        }
        model = resnet50(load_file(artifact.weights_path), image_size=size)
        self._shape = (3, size, size)
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if image.shape != self._shape:
            raise ValueError(f"expected a tensor of shape {self._shape}, got {image.shape}")
        output: NDArray[np.float32] = self._request.infer([image[None]])[0][0]
        return output


class TorchEngine:
    """ResNet50 in torch, on a GPU (or, for tests, the CPU)."""

    name = "torch"

    def __init__(self, artifact: Artifact, device: str = "cuda") -> None:
        import torch

        from image_classifier.vision.model import build_model, load_safetensors

        # TF32 has a mantissa of 10 bits: not the precision the golden samples were recorded at
        torch.backends.cudnn.allow_tf32 = False
        torch.set_num_threads(1)
        size = artifact.preprocessing.image_size
        model = build_model(len(artifact.classes))
        load_safetensors(model, artifact.weights_path)
        self._torch = torch
        self._model = model.eval().to(device, memory_format=torch.channels_last)
        self._autocast = torch.autocast(
            torch.device(device).type, dtype=torch.bfloat16, enabled=_precision(artifact) == "bfloat16"
        )
        self._device = device
        self._shape = (3, size, size)

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if image.shape != self._shape:
            raise ValueError(f"expected a tensor of shape {self._shape}, got {image.shape}")
        batch = self._torch.from_numpy(image[None]).to(self._device, memory_format=self._torch.channels_last)
        with self._torch.inference_mode(), self._autocast:
            output: NDArray[np.float32] = self._model(batch)[0].float().cpu().numpy()
        return output


def load_engine(artifact: Artifact, *, gpu_id: int | None = None) -> Engine:
    """The engine that $CLASSIFIER_ENGINE names, or with `auto` the best one this machine can run.

    Args:
        gpu_id: the GPU this worker was given by the model server; None for the first.

    Raises:
        ConfigError: an unknown name in $CLASSIFIER_ENGINE.
        PlatformError: torch was asked for and there is no usable GPU.
        ArtifactError: the weights are not a ResNet50's.
    """
    wanted = requested_engine()
    if wanted == "torch" or (wanted == "auto" and has_gpu()):
        import torch

        if torch.cuda.is_available():
            return TorchEngine(artifact, f"cuda:{gpu_id or 0}")
        if wanted == "torch":
            raise PlatformError("torch finds no usable GPU", "compare the driver's CUDA version with torch's")
        _log.warning("there is a GPU that torch cannot use; the CPU answers instead")
    return OpenVinoEngine(artifact)


def requested_engine() -> str:
    """The value of $CLASSIFIER_ENGINE, `auto` without it. Raises ConfigError when it is not one of ENGINES."""
    name = os.environ.get(ENGINE_VARIABLE) or ENGINES[0]
    if name not in ENGINES:
        raise ConfigError(f"{ENGINE_VARIABLE} must be one of {', '.join(ENGINES)}, not {name!r}")
    return name


def has_gpu() -> bool:
    """Whether torch is installed and the machine shows an NVIDIA device; importing torch just to ask costs seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) and importlib.util.find_spec("torch") is not None


def _precision(artifact: Artifact) -> str:
    precision = artifact.manifest.precision
    if precision not in PRECISIONS:
        raise ArtifactError(f"the model's precision is {precision!r}", f"this program knows {', '.join(PRECISIONS)}")
    return precision
