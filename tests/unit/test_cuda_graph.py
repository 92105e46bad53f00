"""Which way a network on a GPU is called: piece by piece, or replayed. The recording itself needs a GPU."""

from __future__ import annotations

import gc
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from image_classifier.serving.cuda_graph import Network, Replay, fastest, recorded

EXAMPLE = torch.ones(1, 3)


def quick(images: Tensor) -> Tensor:
    return images + 1


def slow(images: Tensor) -> Tensor:
    time.sleep(0.02)
    return images + 1


@pytest.mark.parametrize(("network", "recording"), [(slow, quick), (quick, slow)])
def test_what_answers_sooner_serves(network: Network, recording: Network) -> None:
    assert fastest(network, EXAMPLE, lambda *_: recording) is quick


def test_a_network_that_cannot_be_recorded_serves_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(*_: object) -> Network:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")

    assert fastest(slow, EXAMPLE, refuses) is slow
    assert caplog.messages == [
        "the network is not replayed from a CUDA graph: operation not permitted when stream is capturing"
    ]


class Doubling:
    """A network with a weight, and a graph of it: both compute from where the numbers lie."""

    def __init__(self) -> None:
        self.weight = torch.full((1, 3), 2.0)

    def __call__(self, images: Tensor) -> Tensor:
        return images * self.weight


def test_a_replay_keeps_what_its_graph_reads() -> None:
    network, inputs, outputs = Doubling(), torch.zeros(1, 3), torch.zeros(1, 3)
    weight = weakref.ref(network.weight)
    graph = SimpleNamespace(replay=lambda: outputs.copy_(inputs * weight()))  # knows addresses alone
    replay = Replay(graph, inputs, outputs, network)
    del network
    gc.collect()
    first, second = replay(EXAMPLE), replay(3 * EXAMPLE)
    assert torch.equal(first, 2 * EXAMPLE)
    assert torch.equal(second, 6 * EXAMPLE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_replay_answers_what_the_network_answers() -> None:
    network = torch.nn.Conv2d(3, 4, 3).cuda().eval()
    replay = recorded(network, torch.zeros(1, 3, 8, 8, device="cuda"))
    first, second = (torch.randn(1, 3, 8, 8, device="cuda") for _ in range(2))
    with torch.inference_mode():
        answers = replay(first), replay(second)
        expected = network(first), network(second)
        del network
        kept = [torch.full((4, 3, 3, 3), torch.nan, device="cuda") for _ in range(64)]  # where its weights lay
        answers += (replay(first),)
        assert len(kept) == 64
        assert torch.equal(answers[0], expected[0])
        assert torch.equal(answers[1], expected[1])
        assert torch.equal(answers[2], expected[0])
