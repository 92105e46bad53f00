"""What our tensors are called in smdebug's files: as its own hook names them for PyTorch, where it has a name."""

from __future__ import annotations

import re

from image_classifier.debugging.schema import Mode

LOSS = "CrossEntropyLoss_output_0"  # smdebug's `losses` collection takes names that match [Ll]oss_(?!input).*output
STEP_FACTS = "epoch_images_clean_loss"  # (3,) float32, of every step: one record, as each costs half a millisecond
LABELS = "labels"  # counts by class, at an epoch's last step
HITS = "hits"
MODE_NAMES: dict[Mode, str] = {"train": "TRAIN", "eval": "EVAL", "test": "PREDICT"}


def tensor_name(kind: str, name: str, model_name: str) -> str:
    """The tensor's name in smdebug's files. `kind` is a field of StatisticsRecord, `model_name` the network's class."""
    known = {
        "gradients": f"gradient/{model_name}_{name}",
        "weights": f"{model_name}_{name}",
        "inputs": f"input_channel_{name}",
        "batch": f"batch/{name}",
    }
    return known.get(kind, name)


def parse_tensor_name(tensor: str, model_name: str) -> tuple[str, str] | None:
    """The inverse of `tensor_name`: kind and name; None for a tensor that is none of ours."""
    patterns = {
        "gradients": rf"gradient/{re.escape(model_name)}_(.+)",
        "weights": rf"{re.escape(model_name)}_(.+)",
        "inputs": r"input_channel_(\d+)",
        "batch": r"batch/(.+)",
        "activations": r"(.+_output_\d+)",
    }
    for kind, pattern in patterns.items():
        if match := re.fullmatch(pattern, tensor):
            return kind, match.group(1)
    return None


def reduction_of(statistic: str) -> tuple[str, bool]:
    """smdebug's name of a statistic, and whether it is of absolute values: `abs_mean` -> mean, True."""
    return (statistic[4:], True) if statistic.startswith("abs_") else (statistic, False)
