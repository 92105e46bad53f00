"""Part (d): golden samples in every engine and number format: how far from what training wrote down, within bounds?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from benchmarks.gpu.jobs import finished_model
from benchmarks.gpu.kit import Kit, lacks

from image_classifier.contract.errors import ArtifactError, PlatformError
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.cuda_graph import Network, recorded
from image_classifier.serving.engines import FORMATS, OpenVinoEngine, TorchEngine, torch_network
from image_classifier.vision.artifact import Artifact, load_model
from image_classifier.vision.gate import BFLOAT16, FLOAT16, FLOAT32
from image_classifier.vision.model import build_model, load_safetensors

DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}


def run(kit: Kit) -> None:
    """Every engine that is here, each in every number format; on a GPU also replayed from a CUDA graph."""
    artifact = load_model(finished_model(kit))
    found: dict[str, dict[str, Any]] = {}
    for name, make in engines(kit, artifact).items():
        precision = name.rpartition(" ")[2]
        try:
            change = largest_change(Classifier(artifact, make()))
        except PlatformError as error:
            kit.skip(name, error.message)
            continue
        except ArtifactError as error:
            found[name] = {"within": False, "failed": error.message}
            continue
        tolerance = artifact.manifest.tolerance(precision)
        refusal = artifact.manifest.refusal(precision)
        found[name] = {"largest_change": change, "tolerance": tolerance, "within": change <= tolerance}
        if refusal:
            found[name]["refused_by_its_gate"] = refusal
        kit.note("engines", found)
    device = kit.size("cuda", "cpu")
    for precision in FORMATS[TorchEngine.name]:
        if not (kit.fake and precision == FLOAT16):
            found[f"graph {device} {precision}"] = {
                "largest_change_from_eager": graph_change(artifact, device, precision)
            }
    kit.note("engines", found)
    allowed = {name: each for name, each in found.items() if "within" in each and "refused_by_its_gate" not in each}
    kit.claim(
        "every engine whose format the model allows reproduces the golden samples within its tolerance",
        all(each["within"] for each in allowed.values()),
        ", ".join(f"{name} {_in_words(each)}" for name, each in allowed.items()),
    )


def _in_words(found: Mapping[str, Any]) -> str:
    failed: str = found.get("failed", "")
    return failed or f"{found['largest_change']:.2g} of {found['tolerance']:.2g}"


def engines(kit: Kit, artifact: Artifact) -> dict[str, Callable[[], Any]]:
    """Name, ending in the number format -> how to load it."""
    found: dict[str, Callable[[], Any]] = {}
    for precision in (FLOAT32, BFLOAT16):
        found[f"torch cpu {precision}"] = lambda precision=precision: TorchEngine(artifact, "cpu", precision)
    if lacks("openvino"):
        for precision in FORMATS[OpenVinoEngine.name]:
            kit.skip(f"openvino cpu {precision}", "openvino is not installed")
    else:
        for precision in FORMATS[OpenVinoEngine.name]:
            found[f"openvino cpu {precision}"] = lambda precision=precision: OpenVinoEngine(artifact, precision)
    if kit.fake:
        kit.skip("torch cuda", "--fake has no GPU")
    else:
        for precision in FORMATS[TorchEngine.name]:
            found[f"torch cuda {precision}"] = lambda precision=precision: TorchEngine(artifact, "cuda", precision)
    return found


def largest_change(classifier: Classifier) -> float:
    """The largest distance of a golden sample's probability from the recorded one."""
    return max(
        float(np.abs(classifier.probabilities(sample.image) - np.asarray(sample.probabilities)).max())
        for sample in classifier.artifact.golden
    )


def graph_change(artifact: Artifact, device: str, precision: str) -> float:
    """The largest distance of a replayed graph's probabilities from the same network's, called as usual."""
    network = torch_network(artifact, device, precision)
    size = artifact.preprocessing.image_size
    images = torch.randn(4, 1, 3, size, size, generator=torch.Generator().manual_seed(0))
    replay = replayed(network, images[0].to(device))
    with torch.inference_mode():
        return max(
            float((replay(image.to(device)).softmax(1) - network(image.to(device)).softmax(1)).abs().max())
            for image in images
        )


def load_autocast(artifact: Artifact, device: str, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What `torch_network` computes, with autocast, which converts the weights for every batch."""
    torch.backends.cudnn.allow_tf32 = False  # as the serving engine
    model = build_model(len(artifact.classes))
    load_safetensors(model, artifact.weights_path)
    model = model.eval().to(device, memory_format=torch.channels_last)
    # the cache of converted weights lives in the memory of the graph that captured it
    autocast: Mapping[str, Any] = {"dtype": DTYPES[precision], "enabled": precision != FLOAT32, "cache_enabled": False}

    def logits(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.partition(":")[0], **autocast):
            return model(images.to(memory_format=torch.channels_last)).float()  # type: ignore[no-any-return]

    return logits


def replayed(network: Network, example: torch.Tensor) -> Network:
    """The network as one CUDA graph for inputs of the example's shape; on the CPU, which has none, the network."""
    return recorded(network, example) if example.device.type == "cuda" else network
