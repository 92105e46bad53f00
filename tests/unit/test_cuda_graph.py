"""Which way a network on a GPU is called: piece by piece, or replayed. The recording itself needs a GPU."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from image_classifier.serving.cuda_graph import Network, fastest, recorded

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
def test_a_replay_answers_what_the_network_answers() -> None:
    network = torch.nn.Conv2d(3, 4, 3).cuda().eval()
    replay = recorded(network, torch.zeros(1, 3, 8, 8, device="cuda"))
    first, second = (torch.randn(1, 3, 8, 8, device="cuda") for _ in range(2))
    with torch.inference_mode():
        answers = replay(first), replay(second)
        assert torch.equal(answers[0], network(first))
        assert torch.equal(answers[1], network(second))
