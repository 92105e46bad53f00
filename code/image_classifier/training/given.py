"""Gradients whose memory whoever receives them may write into: nobody else has them. Autograd does not tell."""

from __future__ import annotations

from torch import Tensor

_NAME = "_is_given_away"


def give_away(gradient: Tensor) -> None:
    """Says of a gradient that was made this moment, and is returned to autograd for one input, that it is the
    receiver's."""
    setattr(gradient, _NAME, True)


def received(gradient: Tensor) -> bool:
    """Whether it is this receiver's, who alone may ask, and once. A sum of several gradients may be: autograd adds
    to the first in place where nobody else has it."""
    mine = getattr(gradient, _NAME, False)
    if mine:
        delattr(gradient, _NAME)
    return mine
