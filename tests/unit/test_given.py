"""Whose memory a gradient is, told from who made it to who receives it, through autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from image_classifier.training.given import give_away, received


class GivesAway(torch.autograd.Function):
    """x, and a gradient of it that is made where it is returned. Some keep it to look at, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: list[Tensor] | None) -> Tensor:
        ctx.kept = kept
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        made = 2 * dy
        give_away(made)
        if ctx.kept is not None:
            ctx.kept.append(made)
        return made, None


class Asks(torch.autograd.Function):
    """x. Tells what it receives, and whether that is its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[tuple[Tensor, bool]]) -> Tensor:
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        ctx.seen.append((dy, received(dy)))
        return dy, None


def asked(*, before: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
    """What the receiver saw, where `before` is what it answers to."""
    seen: list[tuple[Tensor, bool]] = []
    x = torch.ones(3, requires_grad=True)
    before(Asks.apply(x, seen)).sum().backward()
    (found,) = seen
    return found


def test_what_is_given_away_is_received_once() -> None:
    gradient = torch.ones(3)
    assert not received(gradient)
    give_away(gradient)
    assert received(gradient)
    assert not received(gradient)


def test_no_other_tensor_of_the_same_memory_is_received() -> None:
    gradient = torch.ones(3)
    give_away(gradient)
    assert not received(gradient.view(3))
    assert not received(gradient.detach())
    assert not received(gradient + 1)


def test_it_is_received_through_autograd() -> None:
    kept: list[Tensor] = []
    gradient, mine = asked(before=lambda x: GivesAway.apply(x, kept))
    assert mine
    assert gradient.data_ptr() == kept[0].data_ptr()


def test_what_others_made_is_not() -> None:
    _, mine = asked(before=lambda x: 2 * x)
    assert not mine


@pytest.mark.parametrize("kept_first", [True, False])
@pytest.mark.parametrize("other", ["given away", "made by torch"])
def test_writing_into_a_sum_that_is_received_changes_no_part_that_another_has(kept_first: bool, other: str) -> None:
    """Autograd adds in place, to what may be marked, where nobody else has it."""
    kept: list[Tensor] = []

    def before(x: Tensor) -> Tensor:
        parts = [GivesAway.apply(x, kept), GivesAway.apply(x, None) if other == "given away" else 2 * x]
        first, second = parts if kept_first else reversed(parts)
        return first + second

    gradient, mine = asked(before=before)
    assert gradient.tolist() == [4.0] * 3
    if mine:
        gradient.zero_()
    assert [each.tolist() for each in kept] == [[2.0] * 3]


def test_a_sum_that_is_made_anew_is_nobodys() -> None:
    kept: list[Tensor] = []
    _, mine = asked(before=lambda x: GivesAway.apply(x, kept) + GivesAway.apply(x, kept))
    assert not mine
