"""What turns a tensor into logits: OpenVINO on the CPU, torch on a GPU, each in several number formats."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from image_classifier.contract.endpoint import ENGINE_VARIABLE, PRECISION_VARIABLE
from image_classifier.contract.errors import ArtifactError, PlatformError
from image_classifier.serving.cuda_graph import Network, fastest
from image_classifier.serving.requested import OPENVINO, TORCH, has_gpu, requested_engine
from image_classifier.vision.artifact import Artifact
from image_classifier.vision.gate import BFLOAT16, FLOAT16, FLOAT32, INT8

if TYPE_CHECKING:
    from torch import Tensor

    from image_classifier.serving.openvino_resnet import FoldedWeights

FORMATS = {OPENVINO: (INT8, BFLOAT16, FLOAT32), TORCH: (FLOAT16, BFLOAT16, FLOAT32)}
"""Engine -> number formats it can compute in, those first that usually are faster."""

# what OpenVINO is told, named in full because its default is bf16 on processors that have it
_HINTS = {INT8: "f32", BFLOAT16: "bf16", FLOAT32: "f32"}  # int8 is in the graph, f32 what is around it

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """A loaded network. `precision` is the number format it computes in."""

    name: str
    precision: str

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """(3, H, W) float32 -> (num_classes,) float32. Raises ValueError on another shape."""


class OpenVinoEngine:
    """ResNet50 on the CPU, with one thread: a server has one process a core, and threads would only fight over cores.

    With more of them only where nothing is forked: a forked process has none of its parent's threads.
    """

    name = OPENVINO

    def __init__(
        self, artifact: Artifact, precision: str = "", weights: FoldedWeights | None = None, *, threads: int = 1
    ) -> None:
        """Without a `precision`, that of the weights.

        Args:
            weights: the artifact's, for who makes several engines; read from it without them.
            threads: that compute one image.

        Raises:
            ArtifactError: the weights are not a ResNet50's, or the artifact has no ranges for int8.
            PlatformError: the processor cannot compute in this format.
        """
        from image_classifier.serving.openvino_resnet import core, resnet50

        self.precision = _precision(artifact, precision, self.name)
        size, ranges = artifact.preprocessing.image_size, artifact.manifest.ranges
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # every worker would be pinned to the same core
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
        }
        weights = weights or folded_weights(artifact)
        model = resnet50(weights, image_size=size, ranges=ranges if self.precision == INT8 else None)
        self._shape = (3, size, size)
        refusal = PlatformError(
            f"OpenVINO cannot compute {self.precision} on this processor", f"serve {FLOAT32}: {PRECISION_VARIABLE}"
        )
        try:
            compiled = core().compile_model(model, "CPU", settings)
        except RuntimeError as error:  # a processor for which OpenVINO lacks one of the kernels
            raise refusal from error
        if self.precision == BFLOAT16 and compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f16":
            raise refusal  # arm64: it takes float16 then, which is not what the gate was measured in
        self._request = compiled.create_infer_request()
        weights.forget()  # it has its own copy by now, in the order in which it computes

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if image.shape != self._shape:
            raise ValueError(f"expected a tensor of shape {self._shape}, got {image.shape}")
        output: NDArray[np.float32] = self._request.infer([image[None]])[0][0]
        return output


class TorchEngine:
    """ResNet50 in torch, on a GPU (or, for tests, the CPU)."""

    name = TORCH

    def __init__(self, artifact: Artifact, device: str = "cuda", precision: str = "") -> None:
        """Without a `precision`, that of the weights."""
        import torch

        torch.set_num_threads(1)
        self.precision = _precision(artifact, precision, self.name)
        size = artifact.preprocessing.image_size
        self._torch = torch
        self._device = device
        self._network = torch_network(artifact, device, self.precision)
        on_gpu = torch.device(device).type == "cuda"
        # a GPU fetches from pinned memory by itself; one piece of it is enough, for an answer is awaited
        self._input = torch.zeros((1, 3, size, size), pin_memory=on_gpu)
        if on_gpu:
            self._network = fastest(self._network, self._input.to(device))
        self._shape = (3, size, size)

    def logits(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if image.shape != self._shape:
            raise ValueError(f"expected a tensor of shape {self._shape}, got {image.shape}")
        with self._torch.inference_mode():
            self._input[0].copy_(self._torch.from_numpy(image))
            batch = self._input.to(self._device, non_blocking=True)
            output: NDArray[np.float32] = self._network(batch)[0].cpu().numpy()
        return output


def torch_network(artifact: Artifact, device: str, precision: str) -> Network:
    """(n, 3, H, W) float32 on `device` -> (n, num_classes) float32 logits, computed in one of FORMATS["torch"].

    What autocast computes, bit for bit: convolutions and the head in the format, batch norms' parameters in float32.
    But autocast would convert the weights anew for every image; here they are converted once.

    Raises:
        ArtifactError: the weights are not a ResNet50's.
    """
    import torch

    from image_classifier.vision.model import build_model, load_safetensors

    # TF32 has a mantissa of 10 bits: not the precision the golden samples were recorded at
    torch.backends.cudnn.allow_tf32 = False
    dtype = {FLOAT16: torch.float16, BFLOAT16: torch.bfloat16, FLOAT32: torch.float32}[precision]
    model = build_model(len(artifact.classes), drawn=False)
    load_safetensors(model, artifact.weights_path)
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.to(dtype)
    model = model.eval().to(device).to(memory_format=torch.channels_last)

    def network(images: Tensor) -> Tensor:
        logits: Tensor = model(images.to(dtype, memory_format=torch.channels_last))
        return logits.float()

    return network


def folded_weights(artifact: Artifact) -> FoldedWeights:
    """What OpenVINO's graphs are made of. Raises ArtifactError when the weights are not a ResNet50's."""
    from safetensors.numpy import load_file

    from image_classifier.serving.openvino_resnet import FoldedWeights

    return FoldedWeights(load_file(artifact.weights_path))


def load_engine(
    artifact: Artifact,
    *,
    gpu_id: int | None = None,
    precision: str = "",
    weights: FoldedWeights | None = None,
    threads: int = 1,
) -> Engine:
    """The engine that $CLASSIFIER_ENGINE names, or with `auto` the one for this machine: torch on a usable GPU.

    Args:
        gpu_id: the GPU this worker was given by the model server; None for the first.
        precision: the number format to compute in; that of the weights without it.
        weights: `folded_weights`, for who loads several engines; OpenVINO alone takes them.
        threads: of OpenVINO's that compute one image.

    Raises:
        ConfigError: an unknown name in $CLASSIFIER_ENGINE.
        PlatformError: torch was asked for and there is no usable GPU, or the processor cannot compute in this format.
        ArtifactError: the weights are not a ResNet50's, or the engine cannot compute them in this format.
    """
    if engine_here() == TorchEngine.name:
        return TorchEngine(artifact, f"cuda:{gpu_id or 0}", precision)
    return OpenVinoEngine(artifact, precision, weights, threads=threads)


def engine_here() -> str:
    """The name of the engine that `load_engine` takes. Raises its ConfigError and PlatformError."""
    wanted = requested_engine()
    if wanted == TorchEngine.name and importlib.util.find_spec("torch") is None:
        raise PlatformError("there is no torch here", f"unset {ENGINE_VARIABLE}, or take the image that has it: serve")
    if wanted == TorchEngine.name or (wanted == "auto" and has_gpu()):
        import torch

        if torch.cuda.is_available():
            return TorchEngine.name
        if wanted == TorchEngine.name:
            raise PlatformError("torch finds no usable GPU", "compare the driver's CUDA version with torch's")
        _log.warning("there is a GPU that torch cannot use; the CPU answers instead")
    return OpenVinoEngine.name


def _precision(artifact: Artifact, wanted: str, engine: str) -> str:
    precision = wanted or artifact.manifest.precision
    if precision not in FORMATS[engine]:
        known = ", ".join(FORMATS[engine])
        raise ArtifactError(f"the model's precision is {precision!r}", f"on {engine} this program knows {known}")
    if precision == INT8 and not artifact.manifest.ranges:
        raise ArtifactError("the model has no ranges for int8", "train it again with this program, or serve float32")
    return precision
