"""Which image a job or an endpoint gets of those that were pushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.aws.conftest import REGISTRY, ROLE

from image_classifier.contract.errors import ConfigError
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.images import ARM, X86, find_image


def pushed(file: Path, **revisions: str) -> Path:
    """images.json after these images were pushed: kind -> revision."""
    file.write_text(
        json.dumps(
            {
                kind: {
                    "image": f"image-classifier-{kind}:{revision}",
                    "cuda_major": "13" if kind in ("train", "serve") else "0",
                    "uri": f"{REGISTRY}/image-classifier-{kind}@sha256:{'0' * 64}",
                }
                for kind, revision in ((name.replace("_", "-"), value) for name, value in revisions.items())
            }
        )
    )
    return file


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "serve-cpu"),
        ({"serve_instance": "ml.m7i.large"}, "serve-cpu"),
        ({"variant": "serverless"}, "serve-cpu"),
        ({"variant": "async"}, "serve-cpu"),
        ({"serve_instance": "ml.g5.xlarge"}, "serve"),
        ({"serve_instance": "ml.g4dn.xlarge", "variant": "async"}, "serve"),
    ],
    ids=str,
)
def test_an_endpoint_without_a_gpu_gets_the_small_image(settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    aws = SageMakerSettings(role=ROLE, **settings)
    file = pushed(tmp_path / "images.json", train="a", serve="a", serve_cpu="a")
    image = find_image("serve", aws, file, on_gpu=aws.serves_on_gpu)
    assert image.repository == f"image-classifier-{kind}"
    assert image.cuda_major == (0 if kind == "serve-cpu" else 13)
    assert find_image("train", aws, file, on_gpu=False).repository == "image-classifier-train"


@pytest.mark.parametrize(
    "revisions", [{"serve": "b"}, {"serve": "b", "serve_cpu": "a"}], ids=["never pushed", "of another revision"]
)
def test_without_the_small_image_of_its_revision_the_large_one_is_taken(
    revisions: dict[str, str], tmp_path: Path
) -> None:
    file = pushed(tmp_path / "images.json", **revisions)
    assert find_image("serve", SageMakerSettings(), file, on_gpu=False).repository == "image-classifier-serve"


def test_an_endpoint_on_arm64_gets_the_image_for_it_and_no_other(tmp_path: Path) -> None:
    aws = SageMakerSettings(role=ROLE, serve_instance="ml.c8g.xlarge")
    file = pushed(tmp_path / "images.json", train="a", serve="a", serve_cpu="a", serve_arm64="a")
    image = find_image("serve", aws, file, on_gpu=False, on_arm=True)
    assert (image.repository, image.processor, image.cuda_major) == ("image-classifier-serve-arm64", ARM, 0)
    assert find_image("serve", aws, file, on_gpu=False).processor == X86
    pushed(file, train="a", serve="a", serve_cpu="a")
    with pytest.raises(ConfigError, match="the serve-arm64 image has not been pushed") as caught:
        find_image("serve", aws, file, on_gpu=False, on_arm=True)
    assert "push serve-arm64" in caught.value.hint


def test_the_small_image_alone_is_enough_without_a_gpu_and_not_with_one(tmp_path: Path) -> None:
    file = pushed(tmp_path / "images.json", serve_cpu="a")
    assert find_image("serve", SageMakerSettings(), file, on_gpu=False).repository == "image-classifier-serve-cpu"
    with pytest.raises(ConfigError, match="the serve image has not been pushed"):
        find_image("serve", SageMakerSettings(), file)


def test_one_that_was_built_and_not_pushed_is_not_taken(tmp_path: Path) -> None:
    file = pushed(tmp_path / "images.json", serve="a", serve_cpu="a")
    images = json.loads(file.read_text())
    del images["serve-cpu"]["uri"]
    file.write_text(json.dumps(images))
    assert find_image("serve", SageMakerSettings(), file, on_gpu=False).repository == "image-classifier-serve"


def test_an_image_that_is_named_is_taken_for_every_machine(tmp_path: Path) -> None:
    file = pushed(tmp_path / "images.json", serve="a", serve_cpu="a")
    aws = SageMakerSettings(serve_image=f"{REGISTRY}/mine:1")
    assert find_image("serve", aws, file, on_gpu=False).repository == "mine"


@pytest.mark.parametrize("text", ["[]", "{", '{"serve": 3, "serve-cpu": []}', '{"serve-cpu": "x"}'])
def test_a_damaged_file_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text(text)
    with pytest.raises(ConfigError):
        find_image("serve", SageMakerSettings(), tmp_path / "images.json", on_gpu=False)
