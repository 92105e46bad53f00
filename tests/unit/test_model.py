"""The network and every way its weights come in."""

from __future__ import annotations

import pickle
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ConfigError, WeightsError
from image_classifier.launch.training_run import resolve_weights
from image_classifier.vision.artifact import load_model, pack
from image_classifier.vision.foreign_weights import check_file
from image_classifier.vision.model import (
    build_model,
    first_stages,
    load_safetensors,
    load_starting_weights,
    state_arrays,
)
from image_classifier.vision.network import IMAGENET_FILE


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A ResNet50 state dict for 5 classes, recognisable by its first filter."""
    torch.manual_seed(1)
    return dict(build_model(5).state_dict())


@pytest.fixture(scope="module")
def weights_file(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "five.pth"
    torch.save(state, path)
    return path


def same_body(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    mine = model.state_dict()
    return all(torch.equal(mine[name], value) for name, value in state.items() if not name.startswith("fc."))


def test_head_has_one_output_a_class_and_residual_blocks_start_as_identity() -> None:
    model = build_model(3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert all(torch.all(block.bn3.weight == 0) for block in model.layer1)


def test_arrays_written_to_safetensors_load_bit_for_bit(tmp_path: Path) -> None:
    model, other = build_model(3), build_model(3)
    save_file(state_arrays(model.to(memory_format=torch.channels_last)), tmp_path / "m.safetensors")
    load_safetensors(other, tmp_path / "m.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    with pytest.raises(WeightsError, match="does not fit"):
        load_safetensors(build_model(4), tmp_path / "m.safetensors")


def test_state_arrays_are_copies() -> None:
    model = build_model(2)
    arrays = state_arrays(model)
    before = arrays["fc.bias"].copy()
    torch.nn.init.constant_(model.fc.bias, 3.0)
    np.testing.assert_array_equal(arrays["fc.bias"], before)


def test_head_is_replaced_only_when_the_classes_differ(weights_file: Path, state: dict[str, torch.Tensor]) -> None:
    same, fewer = build_model(5), build_model(2)
    head = fewer.fc.weight.detach().clone()
    load_starting_weights(same, str(weights_file))
    load_starting_weights(fewer, weights_file.name, channel=weights_file.parent)
    assert same_body(same, state)
    assert torch.equal(same.fc.weight, state["fc.weight"])
    assert same_body(fewer, state)
    assert torch.equal(fewer.fc.weight, head)


@pytest.mark.parametrize("classes", [5, 2])
def test_a_network_that_was_not_drawn_is_whole_once_weights_are_loaded(tmp_path: Path, classes: int) -> None:
    torch.save(build_model(5).state_dict(), tmp_path / "w.pth")
    drawn, undrawn = build_model(classes), build_model(classes, drawn=False)
    for module in undrawn.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.fill_(torch.nan)  # what lies in memory may be anything
    for model in (drawn, undrawn):
        load_starting_weights(model, str(tmp_path / "w.pth"))
    state, wanted = undrawn.state_dict(), drawn.state_dict()
    assert list(state) == list(wanted)
    for name, value in wanted.items():
        if classes == 5 or not name.startswith("fc."):
            assert torch.equal(state[name], value), name
    assert 0.01 < undrawn.fc.weight.std() < 0.02  # drawn: uniform, up to 1 / sqrt(2048)


def test_imagenet_comes_from_the_channel_then_from_the_cache(
    weights_file: Path, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    from_channel, from_cache = build_model(2), build_model(2)
    assert load_starting_weights(from_channel, "imagenet", channel=weights_file.parent) == str(weights_file)
    cached = tmp_path / "hub" / "checkpoints" / IMAGENET_FILE
    cached.parent.mkdir(parents=True)
    cached.symlink_to(weights_file)
    empty = tmp_path / "channel"
    empty.mkdir()
    assert load_starting_weights(from_cache, "imagenet", channel=empty) == str(cached)
    assert same_body(from_channel, state)
    assert same_body(from_cache, state)


def test_imagenet_without_a_network_fails_at_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    started = time.monotonic()
    with pytest.raises(WeightsError, match="cannot be had") as caught:
        load_starting_weights(build_model(2), "imagenet")
    assert time.monotonic() - started < 60
    assert "weights=none" in caught.value.hint
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.mark,))


def test_weights_that_execute_code_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": Bomb(tmp_path / "executed")}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(WeightsError):
            load_starting_weights(build_model(2), str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def test_unusable_weights_are_named(weights_file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pth").write_bytes(weights_file.read_bytes()[:10_000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    model = build_model(2)
    for name in ("cut.pth", "cut.safetensors", "foreign.pth", "list.pth", "missing.pth"):
        with pytest.raises(WeightsError, match=name):
            load_starting_weights(model, name, channel=tmp_path)
    with pytest.raises(WeightsError, match="holds 4 weight files"):
        load_starting_weights(model, "imagenet", channel=tmp_path)


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def with_head(state: dict[str, torch.Tensor], **head: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("fc.")} | head


AS_PEOPLE_HAVE_THEM = {
    "data parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled in parallel": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 0.1}},
    "Lightning with a loss": lambda s: {"state_dict": prefixed(s, "net.") | {"criterion.weight": torch.ones(5)}},
    "a backbone and a head": lambda s: prefixed(s, "backbone.") | {"head.weight": torch.ones(7, 2048)},
    "under model": lambda s: {"model": s, "args": Namespace(lr=0.1), "epoch": 3},
    "under model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "an average": lambda s: {"state_dict_ema": s},
    "no counters": lambda s: {name: value for name, value in s.items() if "num_batches_tracked" not in name},
    "no head": with_head,
    "a head in a sequence": lambda s: with_head(s, **{"fc.1.weight": torch.ones(9, 2048), "fc.1.bias": torch.ones(9)}),
    "a head of another name": lambda s: with_head(s, **{"classifier.weight": torch.ones(9, 2048)}),
    "a head of another width": lambda s: with_head(s, **{"fc.weight": torch.ones(5, 9), "fc.bias": torch.ones(5)}),
}


@pytest.mark.parametrize("kind", AS_PEOPLE_HAVE_THEM)
def test_weights_are_taken_as_training_scripts_save_them(
    kind: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(AS_PEOPLE_HAVE_THEM[kind](state), tmp_path / "w.pth")
    model = build_model(5)
    head = model.fc.weight.detach().clone()
    load_starting_weights(model, str(tmp_path / "w.pth"))
    assert same_body(model, state)
    has_head = "head" not in kind or kind == "a backbone and a head"
    assert torch.equal(model.fc.weight, state["fc.weight"] if has_head else head)


def test_an_archive_of_ours_is_gone_on_from_and_a_foreign_one_refused(model_dir: Path, tmp_path: Path) -> None:
    archive = tmp_path / "model.tar.gz"
    pack(model_dir, archive)
    model = build_model(2)
    load_starting_weights(model, archive.name, channel=tmp_path)
    kept = load_file(load_model(model_dir).weights_path)
    np.testing.assert_array_equal(model.state_dict()["conv1.weight"].numpy(), kept["conv1.weight"])
    archive.write_bytes(archive.read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"model\.tar\.gz"):
        load_starting_weights(model, str(archive))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number: float, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state | {"layer4.2.bn3.running_var": torch.full((2048,), number)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"not finite in layer4\.2\.bn3\.running_var"):
        load_starting_weights(build_model(5), str(tmp_path / "w.pth"))


def test_weights_without_numbers_and_of_another_network_are_refused(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({name: value.to("meta") for name, value in state.items()}, tmp_path / "meta.pth")
    torch.save(state | {"layer3.6.conv1.weight": torch.ones(1)}, tmp_path / "deeper.pth")
    torch.save(prefixed(state, "")["conv1.weight"], tmp_path / "tensor.pth")
    for name in ("meta.pth", "deeper.pth", "tensor.pth"):
        with pytest.raises(WeightsError, match=name):
            load_starting_weights(build_model(5), str(tmp_path / name))


def test_what_cannot_hold_weights_is_told_without_torch(weights_file: Path, tmp_path: Path) -> None:
    whole = weights_file.read_bytes()
    save_file({"a": np.zeros(1000, np.float32)}, tmp_path / "good.safetensors")
    for name, content, sentence in (
        ("empty.pth", b"", "an empty file"),
        ("page.pth", b"\n<!doctype html><html>404", "a web page"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("cut.pth", whole[:1_000_000], "cut off"),
        ("photo.pth", b"\xff\xd8\xff\xe0", "no file of weights"),
        ("cut.safetensors", (tmp_path / "good.safetensors").read_bytes()[:-1], "cut off"),
        ("none.safetensors", b"\x02\0\0\0\0\0\0\0[]", "no safetensors file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=sentence):
            check_file(tmp_path / name)
    check_file(weights_file)
    check_file(tmp_path / "good.safetensors")


def test_a_runs_name_means_its_model(model_dir: Path, weights_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "train-1"
    run.mkdir()
    with pytest.raises(ConfigError, match=r"holds no model\.tar\.gz"):
        resolve_weights(TrainConfig(weights="train-1"), tmp_path)
    pack(model_dir, run / "model.tar.gz")
    for given in ("train-1", str(run), str(run / "model.tar.gz")):
        assert resolve_weights(TrainConfig(weights=given), tmp_path).weights == str(run / "model.tar.gz")
    assert resolve_weights(TrainConfig(weights=str(weights_file)), tmp_path).weights == str(weights_file)
    with pytest.raises(ConfigError, match="there are no weights train-2"):
        resolve_weights(TrainConfig(weights="train-2"), tmp_path)


@pytest.mark.parametrize(("count", "first"), [(0, "conv1"), (1, "layer2"), (3, "layer4"), (4, "fc")])
def test_frozen_stages_are_the_first_ones_with_the_stem(count: int, first: str) -> None:
    model = build_model(3)
    for part in first_stages(model, count):
        part.requires_grad_(False)
    assert next(name for name, each in model.named_parameters() if each.requires_grad).split(".")[0] == first
    assert all(each.requires_grad for each in model.fc.parameters())
