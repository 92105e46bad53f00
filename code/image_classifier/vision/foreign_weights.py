"""Starting weights as people have them: what can be told of a file without torch, and which of its tensors are ours."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from image_classifier.contract.errors import WeightsError, describe
from image_classifier.contract.files import open_plain
from image_classifier.vision.network import HEAD, NAME, TITLE

# What a training script puts around a state dict, the plain name first: keys of the checkpoint's dictionary
WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "net", "weights")
HINT = f"weights are a .safetensors file, a .pth file holding a {TITLE} state dict, or a model.tar.gz of this program"
GZIP = b"\x1f\x8b"
_FIRST = "conv1.weight"  # a network's names begin with what stands before these two
_SECOND = "layer1.0.conv1.weight"
_BODY = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
_COUNTER = "num_batches_tracked"  # of a batch norm; not used where the momentum is given, and often left out
_MAX_HEADER = 100_000_000  # of a safetensors file, as its own readers have it

Value = TypeVar("Value")


def check_file(path: Path) -> None:
    """Raises WeightsError when the file cannot hold weights, whatever torch would say of it. Needs no torch."""
    try:
        with open_plain(path) as file:
            start = file.read(512)
        size = path.stat().st_size
    except OSError as error:
        raise WeightsError(f"the weights {path} cannot be read: {describe(error)}", HINT) from None
    if not start:
        raise WeightsError(f"the weights {path} are an empty file", HINT)
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"the weights {path} are a web page, not weights", "download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"the weights {path} are a Git LFS pointer and not the file it stands for", "fetch it with `git lfs pull`"
        )
    if path.suffix == ".safetensors":
        _check_header(path, size)
    elif start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"the weights {path} are cut off", "copy or download the file again")
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                raise WeightsError(f"the weights {path} are an archive that torch did not write", HINT)
    elif not start.startswith((GZIP, b"\x80")):  # \x80: a pickle, which torch wrote until 1.6
        raise WeightsError(f"the weights {path} are no file of weights", HINT)


def more_than_tensors(source: Path) -> WeightsError:
    """What is raised for a pickle that would run code, or of which something is missing."""
    return WeightsError(
        f"{source} holds more than plain tensors, or is damaged, and is not loaded",
        f"save its weights alone: torch.save(model.state_dict(), file); {HINT}",
    )


def no_state_dict(source: Path) -> WeightsError:
    """What is raised for a file of something else than tensors by name."""
    return WeightsError(f"{source} is not a state dict", HINT)


def other_network(source: Path, wrong: Sequence[str]) -> WeightsError:
    """What is raised where tensors, some of which are named, are missing, of another shape, or too many."""
    return WeightsError(
        f"{source} is not a {TITLE}'s: {len(wrong)} tensors do not fit, first {wrong[0]}",
        f"start from torchvision's {NAME} weights",
    )


def no_numbers(source: Path, name: str) -> WeightsError:
    """What is raised for a tensor that was saved without its numbers."""
    return WeightsError(f"{source} holds no numbers for {name}: it was saved from the device meta", HINT)


def not_finite(source: Path, name: str) -> WeightsError:
    """What is raised for a tensor with a number that is not finite."""
    return WeightsError(
        f"{source} holds a number that is not finite in {name}", "its training diverged: start from others"
    )


def unwrapped(content: object) -> Mapping[object, object] | None:
    """The state dict in what a checkpoint holds; None when there is none."""
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return unwrapped(content[key])
    return content if isinstance(content, Mapping) else None


def own_names(state: Mapping[str, Value]) -> dict[str, Value]:
    """The tensors of the network itself by their own names: without what stands before them (`module.`, `_orig_mod.`,
    `model.`, `backbone.`, ...), without other parts of a larger model, and without a head that is no single layer."""
    before = sorted(
        (name.removesuffix(_FIRST) for name in state if name.endswith(_FIRST)), key=lambda prefix: (len(prefix), prefix)
    )
    prefix = next((each for each in before if each + _SECOND in state), "")
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    heads = (f"{HEAD}.weight", f"{HEAD}.bias")
    return {name: value for name, value in inner.items() if name.startswith(_BODY) or name in heads}


def is_counter(name: str) -> bool:
    """Whether the tensor only counts batches: one that is missing does no harm."""
    return name.endswith(_COUNTER)


def _check_header(path: Path, size: int) -> None:
    """Raises WeightsError when a safetensors file is cut off or something else."""
    with open_plain(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise WeightsError(f"the weights {path} are cut off, or no safetensors file", HINT)
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise WeightsError(f"the weights {path} are no safetensors file", HINT) from None
    if 8 + length + max(ends, default=0) != size:
        raise WeightsError(f"the weights {path} are cut off", "copy or download the file again")
