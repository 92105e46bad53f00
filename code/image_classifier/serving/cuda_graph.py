"""A network on a GPU as a CUDA graph: its hundreds of launches are recorded once, and then sent as one.

For one image at a time a GPU computes faster than Python can launch. A graph that cannot be recorded, or that is no
faster here, is not used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Network = Callable[["Tensor"], "Tensor"]

WARM_UPS = 3  # before the recording: kernels are chosen then, and memory is asked for
FORWARDS = 10  # of each way; the fastest counts: others are disturbed by something

_log = logging.getLogger(__name__)


def fastest(network: Network, example: Tensor, record: Callable[[Network, Tensor], Network] | None = None) -> Network:
    """`network`, or its recording when that answers sooner; for inputs of the example's shape.

    Args:
        example: on the device that computes.
        record: makes the recording; raises RuntimeError when it cannot. That of a CUDA graph without it.
    """
    try:
        replay = (record or recorded)(network, example)
    except RuntimeError as error:
        _log.warning("the network is not replayed from a CUDA graph: %s", str(error).partition("\n")[0])
        return network
    each, replayed = seconds(network, example), seconds(replay, example)
    _log.info("a forward takes %.2f ms launched piece by piece, %.2f ms as a CUDA graph", 1000 * each, 1000 * replayed)
    return replay if replayed < each else network


def recorded(network: Network, example: Tensor) -> Network:
    """The network as one CUDA graph, for inputs of the example's shape and device; each answer is a tensor of its own.

    Raises:
        RuntimeError: it does something that no graph can hold, or the GPU has no memory left for it.
    """
    import torch

    inputs = example.clone()
    with torch.inference_mode():
        side, computing = torch.cuda.Stream(example.device), torch.cuda.current_stream(example.device)  # type: ignore[no-untyped-call]
        side.wait_stream(computing)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                network(inputs)
        computing.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads of the process may use the GPU meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = network(inputs)

    return Replay(graph, inputs, outputs, network)


class Replay:
    """A network that was recorded, for inputs of one shape.

    A graph knows addresses alone. So what lies there must stay: inputs, answers, and the network, whose weights would
    make room for other numbers if nobody held it any more.

    Args:
        graph: reads `inputs` and the network's weights, and fills `outputs`.
    """

    def __init__(self, graph: Any, inputs: Tensor, outputs: Tensor, network: Network) -> None:
        self._graph, self._inputs, self._outputs, self._network = graph, inputs, outputs, network

    def __call__(self, images: Tensor) -> Tensor:
        """The answers, in a tensor of their own."""
        self._inputs.copy_(images, non_blocking=True)
        self._graph.replay()
        return self._outputs.clone()


def seconds(network: Network, example: Tensor) -> float:
    """Of one forward until its answer is on the host: the least of some, after one that warms up."""
    import torch

    least = float("inf")
    with torch.inference_mode():
        network(example).cpu()
        for _ in range(FORWARDS):
            started = time.perf_counter()
            network(example).cpu()
            least = min(least, time.perf_counter() - started)
    return least
