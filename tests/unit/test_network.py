"""The network's facts are those of the network that torch builds, and of the files that name it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import ResNet50_Weights, get_model

from image_classifier.vision import network
from image_classifier.vision.manifest import Manifest
from image_classifier.vision.model import build_model, head

ROOT = Path(__file__).parents[2]
NUM_CLASSES = 7


def model() -> nn.Module:
    with torch.device("meta"):  # shapes only
        return build_model(NUM_CLASSES)


def shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in module.state_dict().items()]


def test_names_and_shapes_are_those_of_the_model_and_of_torchvisions() -> None:
    facts = list(network.tensor_shapes(NUM_CLASSES).items())
    assert facts == shapes(model())
    with torch.device("meta"):
        assert facts == shapes(get_model(network.NAME, num_classes=NUM_CLASSES))


def test_weights_drawn_and_answers_are_torchvisions_bit_for_bit() -> None:
    torch.manual_seed(3)
    ours = build_model(NUM_CLASSES)
    torch.manual_seed(3)
    theirs = get_model(network.NAME, num_classes=NUM_CLASSES, zero_init_residual=True)
    for (name, mine), value in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, value), name
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in theirs.named_modules()]
    images = torch.randn(2, 3, 64, 64)
    for network_of in (ours, theirs):
        for module in network_of.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
    assert torch.equal(ours(images), theirs(images))  # with the batch's statistics
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("layer", network.convolutions(), ids=lambda layer: layer.name)
def test_a_convolution_is_the_models(layer: network.Convolution) -> None:
    convolution, norm = model().get_submodule(layer.name), model().get_submodule(layer.norm)
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert (convolution.stride, convolution.padding) == ((layer.stride,) * 2, (layer.kernel // 2,) * 2)
    assert (convolution.dilation, convolution.groups, convolution.bias) == ((1, 1), 1, None)
    assert norm.eps == network.BATCH_NORM_EPS


def test_layers_are_the_weights_that_a_debugger_watches_in_their_order() -> None:
    watched = [name for name, parameter in model().named_parameters() if parameter.ndim > 1]
    assert [f"{name}.weight" for name in network.layers()] == watched


def test_the_head_is_the_layer_with_an_output_a_class() -> None:
    built = build_model(NUM_CLASSES)
    assert head(built) is built.fc
    assert (built.fc.in_features, built.fc.out_features) == (network.FEATURES, NUM_CLASSES)


def test_the_manifest_calls_it_by_its_name() -> None:
    assert Manifest.architecture == network.NAME == "resnet50"  # in every artifact there is


def test_the_weights_file_is_torchvisions_and_the_images() -> None:
    """The Dockerfile cannot read the name where it stands."""
    assert ResNet50_Weights.IMAGENET1K_V2.url.rsplit("/", 1)[1] == network.IMAGENET_FILE
    dockerfile = (ROOT / "docker" / "train" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^ADD .*/(\S+\.pth) ", dockerfile, flags=re.MULTILINE) == [network.IMAGENET_FILE]
    assert f"COPY weights/{network.NAME}-*.pth " in dockerfile


def test_reading_the_facts_loads_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import image_classifier.vision.network;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(new - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "code")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "{'image_classifier'}"


def test_int8_rounds_what_enters_each_convolution_and_the_head_and_what_shortcuts_add() -> None:
    names = network.activations()
    outputs = [name for name in names if name.endswith(":output")]
    assert [name for name in names if name not in outputs] == list(network.layers())
    assert len(network.layers()) == 54
    assert len(outputs) == 4
    assert {name for name, signed in names.items() if signed} == {network.STEM.name, *outputs}
