"""Whether the layers of a training end in our kernels (`fused_norms.py`): tried on its device before the first step.
They are used where they are right, and on a GPU faster than torch's; no training fails for want of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import Tensor, nn

from image_classifier.contract.errors import describe
from image_classifier.training.cpu_norms import CpuNorms, load
from image_classifier.training.cuda_kernels import CudaKernels
from image_classifier.training.fused_norms import POOLED, WAYS, FusedNorms, pooled_shape
from image_classifier.training.gpu_norms import KERNELS, SOURCE, GpuNorms
from image_classifier.training.loop import wants_graph
from image_classifier.training.pointwise import by_products
from image_classifier.training.spatial import CpuConvolutions
from image_classifier.vision.resnet import LayerEnd, ResNet, end_layer

if TYPE_CHECKING:
    from image_classifier.training.state import Training

log = logging.getLogger(__name__)
Shape = tuple[int, int, int, int]

BF16_ERROR = 1.01 * 2**-8  # of a number: half of what the last of a bf16's 8 bits is worth, and float32's own errors
FLOAT32_ERROR = 1e-4  # of a number, and of the root mean square of all: sums in float32 are off by some 1e-6


@dataclass(frozen=True)
class Shapes:
    """(N, C, H, W) of what our kernels compute and what is computed exactly; way of a layer's end -> what is timed."""

    checked: Sequence[Shape]
    timed: Mapping[str, Shape]


SHAPES: Mapping[str, Shapes] = {
    # Few channels and many rows, an odd number of them; a block's full width; most channels, of 128 images and of 3;
    # even sides. The largest that a ResNet50 has at 224 pixels, of 128 images: a GPU takes longer for them than a host
    # to launch.
    "cuda": Shapes(
        ((9, 64, 57, 57), (5, 256, 15, 15), (128, 2048, 7, 7), (3, 2048, 7, 7), (7, 64, 28, 18)),
        {POOLED: (128, 64, 112, 112), "add_relu": (128, 256, 56, 56)},
    ),
    # A CPU takes a fifth of a second for these. Nothing is timed: ours take fewer passes over memory whatever the
    # shape, and where it is busy the same training should not be computed by ours at one time, by torch's at another.
    "cpu": Shapes(((5, 64, 28, 31), (5, 256, 15, 15), (3, 2048, 7, 7)), {}),
}
TRIES, ROUNDS = 3, 5  # the fastest of so many tries counts, after one that warms up; rounds of a try


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A layer's end and random numbers for it."""

    norm: nn.BatchNorm2d
    relu: nn.ReLU | None
    pool: nn.MaxPool2d | None
    x: Tensor
    shortcut: Tensor | None
    dy: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        """What has a gradient: x, weight, bias and, where there is one, the shortcut."""
        found = [self.x, self.norm.weight, self.norm.bias]
        return found if self.shortcut is None else [*found, self.shortcut]

    def passes(self, end: LayerEnd) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The answer, and the gradients of the inputs."""
        y = end(self.norm, self.x, relu=self.relu, shortcut=self.shortcut, pool=self.pool)
        return y.detach(), torch.autograd.grad(_Given.apply(y, self.dy), self.inputs)


class _Given(torch.autograd.Function):
    """A number of which y has the gradient dy. Given to `autograd.grad` itself, dy would make torch import its symbolic
    shapes: some 500 modules, seconds of a job's start where storage is slow."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, dy: Tensor) -> Tensor:
        ctx.save_for_backward(dy)
        return y.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Tensor, None]:
        (dy,) = ctx.saved_tensors
        return dy, None


def fuse_norms(training: Training) -> None:
    """Has the network computed in fewer passes over memory, if the job wants that."""
    if wants_fused_norms(training):
        assert isinstance(training.model, ResNet)
        fuse(training.model, training.setup.device, bf16=training.setup.bf16)


def fuse(model: ResNet, device: torch.device, *, bf16: bool) -> None:
    """Has its layers end in our kernels, if they are right and faster there; and in bf16 its convolutions of 1 x 1
    computed as matrix products, on a GPU only with those kernels; on a CPU with them also the larger ones otherwise."""
    found = tried(device, bf16=bf16)
    if found is not None:
        model.end_layers_by(found)
    if bf16 and device.type == "cpu":
        model.convolve_by(by_products if found is None else CpuConvolutions(load()))
    elif bf16 and found is not None:
        model.convolve_by(by_products)


def wants_fused_norms(training: Training) -> bool:
    """Whether to try them: where a whole ResNet trains on a CPU, or in bf16 on a GPU in steps that are to be replayed.
    Launching our kernels one by one takes the host longer than torch's operations."""
    config, setup = training.config, training.setup
    if config.fused_norms != "auto" or config.fine_tune != "full" or not isinstance(training.model, ResNet):
        return False
    return setup.device.type == "cpu" or (setup.bf16 and wants_graph(training))


def on_gpu(device: torch.device) -> FusedNorms:
    """With the kernels compiled for this GPU. Raises as `CudaKernels`."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return FusedNorms(GpuNorms(CudaKernels(SOURCE, KERNELS, device), processors), device)


def on_cpu(device: torch.device) -> FusedNorms:
    """With those compiled for this CPU. Raises as `cpu_norms.load`."""
    return FusedNorms(CpuNorms(load()), device)


def tried(
    device: torch.device,
    *,
    bf16: bool = True,
    make: Callable[[torch.device], FusedNorms] | None = None,
    shapes: Shapes | None = None,
) -> FusedNorms | None:
    """Our kernels, where they are right and faster, if that is asked; with a line in the log either way.

    Args:
        bf16: what the training computes in, not float32.
        make: compiles them; may raise anything.
        shapes: those of SHAPES without.
    """
    is_gpu = device.type == "cuda"
    shapes = shapes or SHAPES[device.type]
    dtype = torch.bfloat16 if bf16 else torch.float32
    try:
        norms = (make or (on_gpu if is_gpu else on_cpu))(device)
        if wrong := wrong_numbers(norms, shapes.checked, dtype):
            log.warning("batch norms are left to torch: our kernels do not compute what it does (%s)", wrong)
            return None
        if not shapes.timed:
            log.info("batch norms are computed by our kernels")
            return norms
        ours, theirs = (seconds(end, shapes.timed, device, dtype) for end in (norms, end_layer))
    except Exception as error:  # any: what makes a training faster must not end it
        log.log(logging.WARNING if is_gpu else logging.INFO, "batch norms are left to torch: %s", describe(error))
        return None
    finally:
        if is_gpu:
            torch.cuda.empty_cache()  # the training has other shapes
    log.info("two large layer ends: %.2f ms by torch, %.2f ms by our kernels", 1000 * theirs, 1000 * ours)
    return norms if ours < theirs else None


def wrong_numbers(norms: FusedNorms, shapes: Sequence[Shape], dtype: torch.dtype = torch.bfloat16) -> str:
    """The first result that is off by more than it may be, in words; empty where all are right. Raises as `errors`."""
    for way in (*WAYS, POOLED):
        for shape in shapes:
            for name, error in errors(norms, way, shape, dtype).items():
                if not error <= 1:  # also where it is no number
                    return f"{name} of {way} {'x'.join(map(str, shape))}: {error:.3g} times what it may be off"
    return ""


def errors(norms: FusedNorms, way: str, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """By name of a result, the largest error of its numbers, over what it may be: 1 or less is right.

    Raises:
        RuntimeError: the kernels cannot be launched, or do not serve this.
    """
    case = random_case(way, shape, norms.device, dtype)
    if not norms.serves(case.norm, case.x, relu=case.relu, shortcut=case.shortcut, pool=case.pool):
        raise RuntimeError(f"our kernels do not serve {way} {'x'.join(map(str, shape))}")
    before = _kept(case.norm)
    y, gradients = case.passes(norms)
    expected = _exact(case, before, y > 0)
    names = ("gradient of x", "gradient of weight", "gradient of bias", "gradient of the shortcut")
    found = {"output": y} | _kept(case.norm) | dict(zip(names, gradients, strict=False))
    return {name: _error(value, expected[name]) for name, value in found.items()}


def random_case(way: str, shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> _Case:
    """Channels have means of up to some 30 deviations, and weights of both signs, one of them 0. Draws no number of the
    training's."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device)

    def rows(values: Tensor) -> Tensor:
        return values.to(dtype).contiguous(memory_format=torch.channels_last)

    channels = shape[1]
    norm = nn.BatchNorm2d(channels, device=device)
    with torch.no_grad():
        norm.weight.copy_(drawn(channels))[0] = 0.0
        norm.bias.copy_(drawn(channels))
        assert norm.running_mean is not None
        norm.running_mean.copy_(drawn(channels))
    deviations, means = drawn(1, channels, 1, 1).exp(), 10 * drawn(1, channels, 1, 1)
    shortcut = rows(drawn(*shape)).requires_grad_() if way == "add_relu" else None
    x = rows((drawn(*shape) + means) * deviations).requires_grad_()
    return _Case(
        norm=norm,
        relu=None if way == "plain" else nn.ReLU(inplace=True),
        pool=nn.MaxPool2d(3, 2, 1) if way == POOLED else None,
        x=x,
        shortcut=shortcut,
        dy=rows(drawn(*(pooled_shape(x) if way == POOLED else shape))),
    )


def _kept(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in norm.named_buffers()}


def _exact(case: _Case, before: Mapping[str, Tensor], passed: Tensor) -> dict[str, Tensor]:
    """What should come out, in float64.

    Args:
        before: what the norm kept before.
        passed: which values of the answer the ReLU let pass. Those it should have let pass are known to no more than
            the answer's error, and a value on the edge has its whole gradient or none.
    """
    norm, dims = case.norm, (0, 2, 3)
    x, dy = case.x.detach().double(), case.dy.double()
    rows = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    inverse = (variance + norm.eps).rsqrt()
    normal = (x - mean) * inverse
    weight, bias = (each.detach().double()[:, None, None] for each in (norm.weight, norm.bias))
    y = normal * weight + bias
    if case.shortcut is not None:
        y = y + case.shortcut.detach().double()
    dz = dy if case.relu is None else dy * passed
    if case.pool is not None:
        y, places = F.max_pool2d(y, 3, 2, 1, return_indices=True)
        dz = torch.zeros_like(normal).flatten(2).scatter_add(2, places.flatten(2), dz.flatten(2)).view(normal.shape)
    dbias, dweight = dz.sum(dims), (dz * normal).sum(dims)
    of_mean, of_normal = (each[:, None, None] / rows for each in (dbias, dweight))
    momentum = norm.momentum or 0.0
    moved = {"running_mean": mean.flatten(), "running_var": variance.flatten() * (rows / (rows - 1))}
    return {
        "output": y if case.relu is None else y.relu(),
        **{name: before[name].double() * (1 - momentum) + value * momentum for name, value in moved.items()},
        "num_batches_tracked": before["num_batches_tracked"] + 1,
        "gradient of x": weight * inverse * (dz - of_mean - normal * of_normal),
        "gradient of weight": dweight,
        "gradient of bias": dbias,
        "gradient of the shortcut": dz,
    }


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over what it may be."""
    exact = expected.double()
    share = BF16_ERROR if found.dtype == torch.bfloat16 else FLOAT32_ERROR
    allowed = share * exact.abs() + FLOAT32_ERROR * exact.square().mean().sqrt()
    return float(((found.double() - exact).abs() / allowed).max())


def seconds(end: LayerEnd, timed: Mapping[str, Shape], device: torch.device, dtype: torch.dtype) -> float:
    """What forward and backward pass of these take together, each the fastest of its tries."""
    total = 0.0
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for way, shape in timed.items():
        case, least = random_case(way, shape, device, dtype), float("inf")
        case.passes(end)
        for _ in range(TRIES):
            wait()
            started = time.perf_counter()
            for _ in range(ROUNDS):
                case.passes(end)
            wait()
            least = min(least, (time.perf_counter() - started) / ROUNDS)
        total += least
    return total
