"""The network and every way its weights come in."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from image_classifier.contract.errors import WeightsError
from image_classifier.vision.model import IMAGENET, build_model, load_safetensors, load_starting_weights, state_arrays


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


def test_imagenet_comes_from_the_channel_then_from_the_cache(
    weights_file: Path, state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    from_channel, from_cache = build_model(2), build_model(2)
    assert load_starting_weights(from_channel, "imagenet", channel=weights_file.parent) == str(weights_file)
    cached = tmp_path / "hub" / "checkpoints" / IMAGENET.url.rsplit("/", 1)[1]
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
