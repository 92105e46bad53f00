"""The network in torch, as torchvision builds it, and every way its weights come in and go out.

With `resnet`, the only module of `vision` that imports torch. No function here unpickles anything: `.safetensors` files
hold plain arrays and `.pth` files are read with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from image_classifier.contract.errors import ArtifactError, WeightsError
from image_classifier.contract.files import open_plain
from image_classifier.vision.artifact import unpack
from image_classifier.vision.foreign_weights import (
    GZIP,
    HINT,
    check_file,
    is_counter,
    more_than_tensors,
    no_numbers,
    no_state_dict,
    not_finite,
    other_network,
    own_names,
    unwrapped,
)
from image_classifier.vision.network import HEAD, IMAGENET_FILE
from image_classifier.vision.resnet import ResNet

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
DOWNLOAD_TIMEOUT_SECONDS = 20.0  # a job without a way out must fail at once, not hang on a connection
_HEAD = (f"{HEAD}.weight", f"{HEAD}.bias")


def build_model(num_classes: int, *, drawn: bool = True) -> ResNet:
    """A randomly initialised ResNet50: (N, 3, H, W) float32, normalised -> (N, num_classes) logits.

    `zero_init_residual` starts every residual block as the identity: without it the network does not learn from
    scratch in the few hundred steps of a small data set. Draws from torch's global random generator.

    Args:
        drawn: False for a network whose weights are about to be loaded: its convolutions hold any numbers until then.
    """
    return ResNet(num_classes, drawn=drawn)


def head(model: ResNet) -> nn.Module:
    """The last layer: what is new where the classes are, and is trained alone with fine_tune=head."""
    layer: nn.Module = model.get_submodule(HEAD)
    return layer


def first_stages(model: ResNet, count: int) -> list[nn.Module]:
    """The stem and the first `count` of the four stages; nothing for 0."""
    stages: list[nn.Module] = [model.layer1, model.layer2, model.layer3, model.layer4]
    return [model.conv1, model.bn1, *stages[:count]] if count else []


def load_starting_weights(model: ResNet, weights: str, *, channel: Path | None = None) -> str:
    """Loads the weights training starts from into `model`, in place.

    Args:
        weights: `none` keeps the random initialisation; `imagenet` is torchvision's IMAGENET1K_V2: from the `weights`
            channel, else from torch hub's cache ($TORCH_HOME), else downloaded; anything else is the path of a
            state dict, as training scripts save it, or of a model.tar.gz, absolute or relative to the channel.
        channel: the folder of the `weights` channel, None where the job has none.

    Returns:
        Where the weights came from, for the log.

    Raises:
        WeightsError: they cannot be had, cannot be read without executing code, are not a ResNet50's, or not finite.
    """
    if weights == "none":
        return "random initialisation"
    source = _imagenet_file(channel) if weights == "imagenet" else _given_file(weights, channel)
    model.load_state_dict(_fit(model, _read_starting_state(source), source))
    return str(source)


def load_safetensors(model: ResNet, path: Path) -> None:
    """Loads exactly the weights that `state_arrays` gave, from a `.safetensors` file, in place.

    Raises:
        WeightsError: the file is damaged, or its names or shapes are not this model's.
    """
    state = _read_state(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit this model: {_first_line(error)}") from None


def state_arrays(model: nn.Module) -> dict[str, NDArray[Any]]:
    """Name -> array of every parameter and buffer, copied to contiguous memory on the CPU, dtypes as they are."""
    return {
        name: np.ascontiguousarray(value.detach().to("cpu", copy=True).contiguous().numpy())
        for name, value in model.state_dict().items()
    }


def _imagenet_file(channel: Path | None) -> Path:
    """The IMAGENET1K_V2 state dict as a file: channel, cache, download, in this order."""
    if channel is not None and channel.is_dir():
        found = sorted(path for path in channel.rglob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file())
        if len(found) > 1:
            raise WeightsError(
                f"the weights channel holds {len(found)} weight files: {', '.join(path.name for path in found[:5])}",
                "leave one, or name it: weights=FILE",
            )
        if found:
            return found[0]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE
    if cached.is_file():
        return cached
    return _download(cached)


def _download(target: Path) -> Path:
    """Fetches the ImageNet weights to `target`, whole or not at all (torch checks the hash in the file's name)."""
    from torchvision.models import ResNet50_Weights

    url = ResNet50_Weights.IMAGENET1K_V2.url
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=target.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a wrong hash is a RuntimeError
        raise WeightsError(
            f"the ImageNet weights cannot be had from {url}: {_first_line(error)}",
            f"give the file: --weights FILE (on SageMaker: the weights channel), put {target.name} into {target.parent}"
            ", or train with weights=none",
        ) from None
    finally:
        socket.setdefaulttimeout(before)
    return target


def _given_file(weights: str, channel: Path | None) -> Path:
    path = Path(weights).expanduser()
    candidates = [path] if channel is None or path.is_absolute() else [channel / path, path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = " and ".join(os.fspath(candidate) for candidate in candidates)
    raise WeightsError(f"there is no weights file {tried}", "weights is imagenet, none or the path of a state dict")


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, of a safetensors file or a pickle of torch, out of what a training script put around them."""
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace]):  # {"model": ..., "args": Namespace}: it runs nothing
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise more_than_tensors(path) from None
    except Exception as error:  # safetensors and torch raise many types on damaged bytes
        raise WeightsError(f"{path} cannot be read as weights: {_first_line(error)}", HINT) from None
    state = unwrapped(content)
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise no_state_dict(path)
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _read_starting_state(path: Path) -> dict[str, torch.Tensor]:
    """As `_read_state`, and of an archive of ours, its checksums verified."""
    with open_plain(path) as file:
        archived = file.read(len(GZIP)) == GZIP
    if not archived:
        return _read_state(path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _read_state(unpack(path, Path(folder) / "model").weights_path)
        except ArtifactError as error:
            raise WeightsError(f"{path}: {error.message}", error.hint or HINT) from None


def _fit(model: ResNet, state: dict[str, torch.Tensor], source: Path) -> dict[str, torch.Tensor]:
    """`state` by the model's names, with the model's own head where the number of classes differs or the head is
    another. Everything else must fit exactly and be finite."""
    wanted = model.state_dict()
    fitted = own_names(state)
    if any(name not in fitted or fitted[name].shape != wanted[name].shape for name in _HEAD):
        fitted.update({name: wanted[name] for name in _HEAD})
    for name in filter(is_counter, wanted):  # a number; one that went through numpy is an array of one
        counted = fitted.get(name, wanted[name])
        fitted[name] = counted.reshape(()) if counted.numel() == 1 else counted
    wrong = [name for name in wanted if name not in fitted or fitted[name].shape != wanted[name].shape]
    wrong += [name for name in fitted if name not in wanted]
    if wrong:
        raise other_network(source, wrong)
    for name, value in fitted.items():
        if value.is_meta:
            raise no_numbers(source, name)
        if not _is_finite(value.float()):  # as the network will have it
            raise not_finite(source, name)
    return fitted


def _is_finite(value: torch.Tensor) -> bool:
    """Whether all numbers are. One that is not makes their sum so, too, which takes a tenth of looking at each; a sum
    may also be too large for its type."""
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
