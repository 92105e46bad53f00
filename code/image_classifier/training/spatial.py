"""Convolutions larger than 1 x 1 in bf16 on a CPU, with gradients of weights that oneDNN does not divide among threads.

Where oneDNN divides the gradient of a weight, its threads wait for each other in the middle of it, in a loop of its own
that never sleeps. Beside a busy process a thread that has no core is waited for so until the scheduler's next slice,
some milliseconds, in each of 17 layers (benchmarks/bench_neighbour.py). Here each thread computes the gradient of its
images alone, and the sum is taken when all are done. Where a layer has many channels and few pixels, the gradient is
one matrix product instead: it takes less time than either.
"""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from image_classifier.training.pointwise import by_products, is_plain

MOST_PARTS = 4  # a part for each of more threads has few images and a sum that is long: not measured, left to oneDNN
FEW_ROWS = 16  # pixels of the answer, of all images, for each of its channels: up to so many a product takes less time
_Compute = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Layer(NamedTuple):
    """What `cpu_norms.load` returns; and how the convolution goes over a picture, in pixels down and to the right."""

    library: ctypes.CDLL
    stride: tuple[int, int]
    padding: tuple[int, int]


class CpuConvolutions:
    """A `Convolve` of a CPU: by matrix products what `pointwise.serves`, larger convolutions as said above, and else by
    the module.

    Args:
        library: what `cpu_norms.load` returns.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __call__(self, convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
        if not serves(convolution, x):
            return by_products(convolution, x)
        layer = Layer(self._library, convolution.stride, convolution.padding)  # type: ignore[arg-type]  # all of two
        found: Tensor = _Spatial.apply(layer, x.to(torch.bfloat16), convolution.weight)
        return found, x

    def __deepcopy__(self, _: object) -> Self:
        return self  # a library has no copies


def serves(convolution: nn.Conv2d, x: Tensor) -> bool:
    """Whether `CpuConvolutions` computes the gradient of this weight: of a convolution larger than 1 x 1, without
    groups, bias and dilation, where autocast computes what lies as channels_last in bf16."""
    return (
        torch.is_grad_enabled()
        and convolution.weight.requires_grad
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.dim() == 4
        and convolution.kernel_size != (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
        and convolution.dilation == (1, 1)
        and is_plain(convolution, x)
    )


class _Spatial(torch.autograd.Function):
    """(N, C, H, W) in bf16 and a weight (K, C, height, width) -> (N, K, H', W') in bf16."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        narrow = weight.to(torch.bfloat16)
        ctx.save_for_backward(x, narrow)
        ctx.layer, ctx.dtype = layer, weight.dtype
        with torch.autocast("cpu", enabled=False):
            return torch.conv2d(x, narrow, None, layer.stride, layer.padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor | None) -> tuple[None, Tensor | None, Tensor | None]:
        if dy is None:
            return None, None, None
        x, weight = ctx.saved_tensors
        _, needs_x, needs_weight = ctx.needs_input_grad
        dy, dx, dweight = dy.contiguous(memory_format=torch.channels_last), None, None
        with torch.autocast("cpu", enabled=False):
            if needs_x:
                dx = _gradient(ctx.layer, dy, x, weight, of_x=True)
            if needs_weight:
                dweight = gradient_of_weight(ctx.layer, dy, x, weight, ctx.dtype)
        return None, dx, dweight


def gradient_of_weight(layer: Layer, dy: Tensor, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient in the weight's layout. The same numbers come out whichever threads compute how many of the parts,
    which are as many as torch has threads.

    Args:
        layer: the convolution's.
        dy: (N, K, H', W'), as `x` and `weight` in bf16, channels_last.
        x: (N, C, H, W).
        weight: (K, C, height, width).
        dtype: of the gradient.
    """
    found = torch.empty_like(weight, dtype=dtype)
    channels = weight.shape[0]
    if len(dy) * dy.shape[2] * dy.shape[3] <= FEW_ROWS * channels:
        return found.copy_(_by_product(layer, dy, x, weight.shape))
    threads = torch.get_num_threads()
    if not 1 < threads <= MOST_PARTS or len(x) < threads:
        return found.copy_(_gradient(layer, dy, x, weight, of_x=False))
    first, *others = _in_parts(layer, dy, x, weight, threads)
    found.copy_(first)
    for other in others:
        found.add_(other)
    return found


def _in_parts(layer: Layer, dy: Tensor, x: Tensor, weight: Tensor, parts: int) -> list[Tensor]:
    """Of each part of the images the gradient of the weight."""
    found: list[Tensor | BaseException] = [RuntimeError("it was not computed")] * parts
    firsts = [len(x) * part // parts for part in range(parts + 1)]

    def compute(part: int) -> None:
        images = slice(firsts[part], firsts[part + 1])
        try:
            torch.get_num_threads()  # the first time that torch hears of a thread it sets how many it may have
            layer.library.undivided()
            with torch.no_grad():  # a thread of its own computes as none was told to
                found[part] = _gradient(layer, dy[images], x[images], weight, of_x=False)
        except BaseException as error:  # raised below: nothing can be raised through the library
            found[part] = error

    layer.library.in_parts(parts, parts, _Compute(compute))
    computed = []
    for each in found:
        if isinstance(each, BaseException):
            raise each
        computed.append(each)
    return computed


def _gradient(layer: Layer, dy: Tensor, x: Tensor, weight: Tensor, *, of_x: bool) -> Tensor:
    """Torch's gradient of x or of the weight."""
    stride, padding = list(layer.stride), list(layer.padding)
    wanted = [of_x, not of_x, False]
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, [1, 1], False, [0, 0], 1, wanted
    )
    found: Tensor = dx if of_x else dweight
    return found


def _by_product(layer: Layer, dy: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
    """(K, pixels) x (pixels, height x width x C), of what each pixel of the answer saw -> `shape`."""
    images, channels, high, broad = x.shape
    _, _, height, width = shape
    down, right = dy.shape[2:]
    stride, (above, left) = layer.stride, layer.padding
    padded = x.new_zeros(images, high + 2 * above, broad + 2 * left, channels)
    padded[:, above : above + high, left : left + broad] = x.permute(0, 2, 3, 1)
    seen = x.new_empty(images, down, right, height, width, channels)
    for i in range(height):
        rows = slice(i, i + stride[0] * (down - 1) + 1, stride[0])
        for j in range(width):
            seen[:, :, :, i, j] = padded[:, rows, j : j + stride[1] * (right - 1) + 1 : stride[1]]
    product = dy.permute(0, 2, 3, 1).flatten(0, 2).t() @ seen.flatten(0, 2).flatten(1)
    return product.view(-1, height, width, channels).permute(0, 3, 1, 2)
