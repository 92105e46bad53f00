"""What a job would refuse to start from is refused before a run is made, in the same words, and nothing else is."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from tests.unit.test_model import AS_PEOPLE_HAVE_THEM, Bomb, prefixed

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import WeightsError
from image_classifier.launch.runs import list_runs
from image_classifier.launch.training_run import train
from image_classifier.tuning import tuner
from image_classifier.tuning.tune_settings import TuneSettings
from image_classifier.vision.artifact import pack
from image_classifier.vision.foreign_weights import check_file
from image_classifier.vision.model import build_model, load_starting_weights
from image_classifier.vision.sample_data import make_sample_data
from image_classifier.vision.weights_preview import check_contents

State = dict[str, torch.Tensor]
CLASSES = 5
NAN = float("nan")


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(1)
    return dict(build_model(CLASSES).state_dict())


def verdicts(path: Path) -> tuple[str, str]:
    """What is said before a run is made, and by the job: empty when nothing is."""
    before = job = ""
    try:
        check_file(path)
        check_contents(path, CLASSES)
    except WeightsError as error:
        before = f"{error.message} / {error.hint}"
    try:
        load_starting_weights(build_model(CLASSES), str(path))
    except WeightsError as error:
        job = f"{error.message} / {error.hint}"
    return before, job


@pytest.mark.parametrize("kind", AS_PEOPLE_HAVE_THEM)
def test_weights_as_people_have_them_pass(kind: str, state: State, tmp_path: Path) -> None:
    torch.save(AS_PEOPLE_HAVE_THEM[kind](state), tmp_path / "w.pth")
    assert verdicts(tmp_path / "w.pth") == ("", "")


MORE: dict[str, Callable[[State], Any]] = {
    "half": lambda s: {name: value.half() for name, value in s.items()},
    "bfloat16": lambda s: {name: value.bfloat16() for name, value in s.items()},
    "double": lambda s: {name: value.double() for name, value in s.items()},
    "channels last": lambda s: {
        name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
        for name, value in s.items()
    },
    "parameters": lambda s: {n: torch.nn.Parameter(v) if v.is_floating_point() else v for n, v in s.items()},
    "a whole checkpoint": lambda s: {
        "model": s, "optimizer": {"state": {0: {"m": torch.ones(3)}}, "groups": [{"lr": 0.1}]},
        "rng": torch.get_rng_state(), "args": None, "done": True,
    },
    "a NaN in a head that is replaced": lambda s: (
        s | {"fc.weight": torch.full((9, 2048), NAN), "fc.bias": torch.ones(9)}
    ),
    "a NaN in what is not the network's": lambda s: {"model": s, "ema": {"a": torch.full((3,), NAN)}},
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE)
def test_other_good_files_pass(kind: str, state: State, tmp_path: Path) -> None:
    torch.save(MORE[kind](state), tmp_path / "w.pth")
    assert verdicts(tmp_path / "w.pth") == ("", "")


def one_infinite(state: State) -> State:
    filters = state["conv1.weight"].clone()
    filters[63, 2, 6, 6] = -torch.inf
    return state | {"conv1.weight": filters}


def nan_in_bfloat16(state: State) -> State:
    return {name: value.bfloat16() for name, value in state.items()} | {"bn1.bias": torch.full((64,), NAN).bfloat16()}


BAD: dict[str, Callable[[State], Any]] = {
    "a NaN": lambda s: s | {"layer4.2.bn3.running_var": torch.full((2048,), NAN)},
    "one infinite number": one_infinite,
    "a NaN in the head": lambda s: s | {"fc.bias": torch.full((CLASSES,), NAN)},
    "a NaN in bfloat16": nan_in_bfloat16,
    "too large for float32": lambda s: s | {"bn1.bias": torch.full((64,), 1e300, dtype=torch.float64)},
    "one layer more": lambda s: s | {"layer3.6.conv1.weight": torch.ones(1)},
    "one layer less": lambda s: {name: value for name, value in s.items() if name != "layer2.0.bn1.weight"},
    "another shape": lambda s: s | {"conv1.weight": torch.ones(64, 3, 3, 3)},
    "a small network": lambda s: {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3)},
    "no names": lambda s: list(s.values()),
    "nothing": lambda s: {},
    "a tensor": lambda s: s["conv1.weight"],
    "numbers": lambda s: {"conv1.weight": 1.0},
    "without numbers": lambda s: {name: value.to("meta") for name, value in s.items()},
    "a whole model": lambda s: build_model(CLASSES),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_the_job_refuses_is_refused_before_in_the_same_words(kind: str, state: State, tmp_path: Path) -> None:
    torch.save(BAD[kind](state), tmp_path / "w.pth")
    before, job = verdicts(tmp_path / "w.pth")
    assert before == job
    assert job


def test_safetensors_and_archives_of_ours_are_looked_into(state: State, model_dir: Path, tmp_path: Path) -> None:
    save_tensors({name: value.contiguous() for name, value in state.items()}, tmp_path / "good.safetensors")
    bad = state | {"bn1.weight": torch.full((64,), NAN)}
    save_tensors({name: value.contiguous() for name, value in bad.items()}, tmp_path / "nan.safetensors")
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "other.safetensors")
    pack(model_dir, tmp_path / "model.tar.gz")
    whole = (tmp_path / "model.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    for name in ("good.safetensors", "model.tar.gz"):
        assert verdicts(tmp_path / name) == ("", "")
    for name in ("nan.safetensors", "other.safetensors", "cut.tar.gz"):
        before, job = verdicts(tmp_path / name)
        assert before == job, name
        assert job, name


def test_looking_runs_nothing(tmp_path: Path) -> None:
    for name, content in (("dict", {"a": Bomb(tmp_path / "ran")}), ("bare", Bomb(tmp_path / "ran"))):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match="more than plain tensors"):
            check_contents(tmp_path / f"{name}.pth", 2)
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    check_contents(tmp_path / "old.pth", 2)
    assert not (tmp_path / "ran").exists()


def test_no_run_is_made_for_weights_that_its_job_would_refuse(state: State, tmp_path: Path) -> None:
    make_sample_data(tmp_path / "data", num_classes=2, train_per_class=8, valid_per_class=1, test_per_class=0, size=32)
    torch.save(prefixed(BAD["a NaN"](state), "module."), tmp_path / "nan.pth")
    torch.save(BAD["another shape"](state), tmp_path / "other.pth")
    for name in ("nan.pth", "other.pth"):
        config = TrainConfig(weights=str(tmp_path / name), batch_size=4)
        with pytest.raises(WeightsError, match=name):
            train(config, tmp_path / "data", tmp_path / "runs")
        with pytest.raises(WeightsError, match=name):
            tuner.create(config, {}, TuneSettings(), tmp_path / "data", tmp_path / "runs")
    assert list_runs(tmp_path / "runs") == []
