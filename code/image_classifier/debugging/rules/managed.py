"""AWS's managed Debugger and Profiler rules that ask what ours ask. Data only; sagemaker/managed_debugger.py sends it.

The rules and their parameters are those of smdebug-rulesconfig 1.0.1 and of AWS's documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# a collection of tensors -> the pattern of their names; smdebug's own (losses, weights, gradients) have theirs
COLLECTIONS: Mapping[str, str] = {
    "relu_input": r".*relu_input",
    "relu_output": r".*relu_output",
    "input_images": r".*ResNet_input_0",
    "labels": r"labels_output_0",
    "predictions": r"predictions_output_0",
}
Source = Literal["tensors", "system metrics", "framework metrics"]


@dataclass(frozen=True, kw_only=True)
class Managed:
    """AWS's rule for the same question.

    Args:
        reads: what it judges by. Rules over tensors are the Debugger's, the others the Profiler's.
        name: where it differs from ours.
        collections: of tensors that must be saved for it; without them it ends in Error.
        told: whether it has to be told `collections`.
        patterns: its parameter -> the collection whose pattern it takes.
        fields: its parameter -> our rule's field that means the same.
        constants: its parameter -> value.
    """

    reads: Source
    name: str = ""
    collections: tuple[str, ...] = ()
    told: bool = False
    patterns: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)

    def parameters(self) -> dict[str, str]:
        """The parameters that no field of ours decides."""
        told = {"collection_names": ",".join(self.collections)} if self.told else {}
        return {**told, **{theirs: COLLECTIONS[name] for theirs, name in self.patterns.items()}, **self.constants}
