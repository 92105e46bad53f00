"""Every hyperparameter of a training job: its type, default, range and meaning in one place.

A field's name is the hyperparameter's name in the job and the flag's name on the command line. SageMaker carries
hyperparameters as strings and its toolkit turns them into `--batch_size 64 --debug True`; TrainConfig makes the round
trip config -> strings -> arguments -> config without loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn, get_type_hints

from image_classifier.contract.errors import ConfigError

Value = int | float | str | bool
AUTO_WORKERS = -1
NAMED_WEIGHTS = ("imagenet", "none")  # what `weights` may be besides a path
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True, kw_only=True)
class Param:
    """What is known of one hyperparameter besides its value.

    Args:
        section: heading under which settings of one kind stand together, on help pages and in the example file.
        changes_result: whether a job with another value may train other weights. A checkpoint is continued only where
            the settings that do are the same; so the default of a new one is what jobs did before there was it.
    """

    name: str
    type: type
    default: Value
    help: str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    section: str = ""
    changes_result: bool = True


def param(
    default: Value,
    text: str,
    *,
    choices: tuple[str, ...] = (),
    low: float = -math.inf,
    high: float = math.inf,
    section: str = "",
    changes_result: bool = True,
) -> Any:
    """A dataclass field that knows what a Param says of it: what `parameters_of` reads back.

    Args:
        section: begins a section, which goes on to the next field that names one.
    """
    metadata = {
        "help": text,
        "choices": choices,
        "low": low,
        "high": high,
        "section": section,
        "changes_result": changes_result,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The hyperparameters of one training job. Raises ConfigError when a value is out of its range."""

    weights: str = param(
        "imagenet", "start from: imagenet, none (random), or a path to a torchvision state dict", section="Model"
    )
    fine_tune: str = param("full", "train the whole network or only its head", choices=("full", "head"))
    frozen_stages: int = param(
        0, "fine_tune=full: of the body, as many stages do not train; the first one has the stem", low=0, high=4
    )
    image_size: int = param(224, "side of the square the network sees, in pixels", low=32, high=1024)
    train_scale: float = param(1.0, "side of the training crops, as a share of image_size", low=0.25, high=1.0)
    start_scale: float = param(
        1.0,
        "the same in the first epoch; crops grow to train_scale by two thirds of the epochs: less time, less accuracy",
        low=0.25,
        high=1.0,
    )
    golden_samples: int = param(
        4, "test images kept in the artifact with their expected answer", low=1, high=32, changes_result=False
    )

    abstain_coverage: float = param(
        0.0,
        "share of images to answer, the surest; the others get an answer that says abstain; 0 to answer all",
        low=0.0,
        high=1.0,
        changes_result=False,
    )

    augment: str = param(
        "standard",
        "training crops: standard (random crop and flip), light (nearly whole image and flip), none",
        choices=("standard", "light", "none"),
        section="Data",
    )
    feature_views: int = param(
        2,
        "fine_tune=head: views of an image seen once for all epochs, 0 for new crops in each",
        low=0,
        high=64,
    )
    valid_fraction: float = param(0.2, "share split off train when there is no valid folder", low=0.01, high=0.5)
    test_fraction: float = param(0.1, "share kept for test of a data set without folders for splits", low=0.0, high=0.5)
    max_bad_images: int = param(10, "unreadable images to skip before the job fails", low=0, changes_result=False)

    epochs: int = param(10, "passes over the training images", low=1, high=10_000, section="Optimisation")
    batch_size: int = param(32, "images a step, over all devices", low=1, high=65_536)
    optimizer: str = param("sgd", "optimiser", choices=("sgd", "adamw"))
    lr: float = param(0.01, "peak learning rate, after warm-up", low=1e-8, high=10.0)
    momentum: float = param(0.9, "SGD momentum", low=0.0, high=0.9999)
    weight_decay: float = param(1e-4, "weight decay, not applied to biases and batch norms", low=0.0, high=1.0)
    label_smoothing: float = param(0.1, "share of the target spread over all classes", low=0.0, high=0.9)
    class_weights: str = param(
        "none",
        "weight of a class in the loss: none, balanced (1 / its images), effective (1 / their effective number)",
        choices=("none", "balanced", "effective"),
    )
    sampler: str = param(
        "shuffle",
        "images of an epoch: shuffle (each once), balanced (as many of every class, some of them again)",
        choices=("shuffle", "balanced"),
    )
    warmup_epochs: float = param(1.0, "epochs of linear warm-up before the cosine", low=0.0, high=10_000)
    patience: int = param(0, "stop after this many epochs without a better validation loss, 0 for never", low=0)
    seed: int = param(0, "seed of everything random", low=0, high=2**32 - 1)

    amp: str = param(
        "auto",
        "bf16 autocast: auto (where the hardware has it), bf16, off",
        choices=("auto", "bf16", "off"),
        section="Machine",
    )
    workers: int = param(
        AUTO_WORKERS,
        "data loading processes, -1 to fit the machine",
        low=-1,
        high=256,
        changes_result=False,
    )
    cache: str = param(
        "auto",
        "keep decoded images in memory, as many as fit: auto (but for features), decoded, none",
        choices=("auto", "decoded", "none"),
        changes_result=False,
    )
    cuda_graph: str = param(
        "auto",
        "on a GPU, launch forward and backward pass as one: auto (where that is faster), off",
        choices=("auto", "off"),
        changes_result=False,
    )
    fused_norms: str = param(
        "auto",
        "fewer passes over memory for batch norm, shortcut and ReLU, by our own kernels: auto (where they serve), off",
        choices=("auto", "off"),
    )

    log_interval: int = param(10, "steps between progress lines", low=1, section="Debugging", changes_result=False)
    debug: bool = param(True, "record losses and statistics of tensors with the smdebug hook", changes_result=False)
    debug_interval: int = param(
        100, "steps between statistics of gradients and weights, 0 for none", low=0, changes_result=False
    )
    activation_interval: int = param(
        500, "steps between statistics of activations, 0 for none", low=0, changes_result=False
    )
    profile: bool = param(True, "sample the machine and time the parts of each step", changes_result=False)
    trace_steps: int = param(
        0, "training steps to trace with torch.profiler, 0 for none", low=0, high=100, changes_result=False
    )
    preflight: str = param(
        "auto",
        "look at a copy of the network before the first step: auto (where 4,000 images or more will be seen), on, off",
        choices=("auto", "on", "off"),
        changes_result=False,
    )
    rules: str = param(
        "all", "debugger rules to judge the job by: all, none, or names with commas between", changes_result=False
    )
    stop_on: str = param(
        "none",
        "debugger rules that stop the job when they fire: none, or names with commas between",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        for known in parameters():
            check(known, getattr(self, known.name))
        if self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs ({self.warmup_epochs:g}) is longer than the {self.epochs} epochs of the job",
                "lower warmup_epochs or raise epochs",
            )

    def replace(self, **changes: Value) -> TrainConfig:
        """A copy with `changes`. Raises ConfigError on an unknown name or a value out of range."""
        for name in changes:
            parameter(name)
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]  # check tests the types

    def to_hyperparameters(self) -> dict[str, str]:
        """Name -> value as SageMaker carries it: strings only."""
        return {known.name: format_value(getattr(self, known.name)) for known in parameters()}

    @classmethod
    def from_hyperparameters(cls, hyperparameters: Mapping[str, str]) -> TrainConfig:
        """The inverse of `to_hyperparameters`. Names the platform adds (`_...`, `sagemaker_...`) are passed over."""
        ours = {k: v for k, v in hyperparameters.items() if not k.startswith(("_", "sagemaker_"))}
        return cls(**{name: parse_value(name, text) for name, text in ours.items()})  # type: ignore[arg-type]

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> TrainConfig:
        """Reads `--name value` pairs, the form in which the toolkit calls the script.

        Raises:
            ConfigError: an unknown flag, a value of the wrong type, or out of range.
        """
        parser = _Parser(add_help=False, allow_abbrev=False)
        known = {f"--{each.name}" for each in parameters()}
        for flag in sorted(known):
            parser.add_argument(flag, default=None)
        flags = [word.split("=", 1)[0] for word in argv if word.startswith("--")]
        for flag in flags:
            if flag not in known and not flag.startswith(("--_", "--sagemaker_")):
                parameter(flag.removeprefix("--"))  # raises with the nearest name
        namespace, _ = parser.parse_known_args(list(argv))
        return cls.from_hyperparameters({k: v for k, v in vars(namespace).items() if v is not None})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, "hyperparameters are written --name value")


@cache
def parameters_of(settings: type) -> tuple[Param, ...]:
    """The fields of a dataclass made of `param` fields, in their order."""
    hints = get_type_hints(settings)
    known: list[Param] = []
    for f in dataclasses.fields(settings):
        section = f.metadata["section"] or (known[-1].section if known else "")
        what = {**f.metadata, "section": section}
        known.append(Param(name=f.name, type=hints[f.name], default=f.default, **what))  # type: ignore[arg-type]
    return tuple(known)


def parameters() -> tuple[Param, ...]:
    """All hyperparameters, in the order of the fields."""
    return parameters_of(TrainConfig)


def parameter(name: str) -> Param:
    """The hyperparameter called `name`. Raises ConfigError with the nearest known name."""
    by_name = {known.name: known for known in parameters()}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(by_name)}"
    raise ConfigError(f"unknown hyperparameter {name!r}", hint)


def format_value(value: Value) -> str:
    """The string that `parse_value` reads back to the same value."""
    return repr(value) if isinstance(value, float) else str(value)


def parse_value(name: str, text: str) -> Value:
    """The value of hyperparameter `name` written as `text`; quotes that a tuner put around it are removed.

    Raises:
        ConfigError: the text is not of the hyperparameter's type, or the value out of its range.
    """
    return parse_as(parameter(name), text)


def parse_as(param: Param, text: str) -> Value:
    """The value of `param` written as `text`, for settings that are described by a Param but are no hyperparameter.

    Raises:
        ConfigError: the text is not of the parameter's type, or the value out of its range.
    """
    text = text.strip()
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    value: Value
    try:
        if param.type is bool:
            value = {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        elif param.type is int:
            value = int(text)
        elif param.type is float:
            value = float(text)
        else:
            value = text
    except (ValueError, KeyError):
        raise ConfigError(f"{param.name} must be {KINDS[param.type]}, not {text!r}") from None
    check(param, value)
    return value


def range_words(param: Param) -> str:
    """The numbers that `param` may be: `32 to 1024`, `at least 0`; empty where there is no range."""
    if param.type not in (int, float) or math.isinf(param.low):
        return ""
    if math.isinf(param.high):
        return f"at least {param.low:g}"
    return f"{param.low:g} to {param.high if param.type is int else format(param.high, '.6g')}"


def check(param: Param, value: object) -> None:
    """Raises ConfigError when `value` is not of `param`'s type, not one of its choices, or out of its range."""
    if param.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not param.type:
        raise ConfigError(f"{param.name} must be {KINDS[param.type]}, not {value!r}")
    if param.choices and value not in param.choices:
        raise ConfigError(f"{param.name} must be one of {', '.join(param.choices)}, not {value!r}")
    if isinstance(value, (int, float)) and not param.low <= value <= param.high:
        if math.isinf(param.high):
            raise ConfigError(f"{param.name} must be {param.low:g} or more, not {value}")
        raise ConfigError(f"{param.name} must lie in {param.low:g} .. {param.high:g}, not {value}")
    if value == "":
        raise ConfigError(f"{param.name} must not be empty")
