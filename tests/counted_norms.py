"""Kernels of batch norms that tell what they were asked to compute."""

from __future__ import annotations

from typing import Any

from image_classifier.training.fused_norms import NormKernels


class CountedNorms:
    """`NormKernels` that have others compute, and keep the pass and the way of each layer's end in `computed`."""

    def __init__(self, kernels: NormKernels) -> None:
        self._kernels = kernels
        self.dtypes, self.evaluates = kernels.dtypes, kernels.evaluates
        self.computed: list[str] = []

    def forward(self, way: str, *given: Any, **filled: Any) -> None:
        self.computed.append(f"forward {way}")
        self._kernels.forward(way, *given, **filled)

    def evaluate(self, way: str, *given: Any, **filled: Any) -> None:
        self.computed.append(f"evaluate {way}")
        self._kernels.evaluate(way, *given, **filled)

    def backward(self, way: str, *given: Any, **filled: Any) -> None:
        self.computed.append(f"backward {way}")
        self._kernels.backward(way, *given, **filled)
