"""Which images jobs run: named in the settings, or what build_and_push.sh pushed last.

The script writes `build/images.json`, with the digest in the URI, so that a job runs what was tested:

    {"train": {"image": "image-classifier-train:0ec4773b0e73", "cuda_major": "13",
               "uri": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/image-classifier-train@sha256:..."},
     "serve": {...}, "serve-cpu": {...}, "serve-arm64": {...}}

An entry without `uri` was built here and not pushed. Endpoints and batch jobs without a GPU get `serve-cpu`, a tenth of
the size, where it was pushed and is of the other's revision; endpoints on arm64 processors get `serve-arm64`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from image_classifier.contract.errors import ConfigError
from image_classifier.launch.docker import IMAGES_FILE
from image_classifier.sagemaker.aws_settings import AUTO, SageMakerSettings

_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.(amazonaws\.com(\.cn)?|on\.aws)/(?P<name>.+)"
)
X86, ARM = "x86-64", "arm64"
_PUSH_HINT = "build and push them with `make build push`, or name them: train_image and serve_image under [sagemaker]"
_ARM_HINT = (
    "build and push it with `./build_and_push.sh push serve-arm64`, or choose an instance such as ml.c7i.xlarge: "
    "serve_instance under [sagemaker]"
)


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in ECR. `repository` is its name there, `reference` its tag or `sha256:...` digest.

    Args:
        processor: X86 or ARM; empty where that is not known, as of an image that the settings name.
    """

    uri: str
    cuda_major: int
    account: str
    region: str
    repository: str
    reference: str
    processor: str = ""

    @property
    def is_digest(self) -> bool:
        return self.reference.startswith("sha256:")


def find_image(
    which: Literal["train", "serve"],
    settings: SageMakerSettings,
    file: Path = IMAGES_FILE,
    *,
    on_gpu: bool = True,
    on_arm: bool = False,
) -> Image:
    """The image of training or serving. Raises ConfigError when none is known, or it is not in ECR.

    Args:
        on_gpu: whether the machine may have a GPU; without one serving takes less.
        on_arm: whether its processor is arm64.
    """
    uri = settings.train_image if which == "train" else settings.serve_image
    if uri != AUTO:
        return parse_uri(uri, settings.cuda_major)
    try:
        images = json.loads(file.read_text(encoding="utf-8"))
        name = f"{which}-arm64" if on_arm else which
        entry = images.get(name) or {}
        if name == "serve" and not on_gpu and (small := _small(images)):
            entry = small
        if "uri" not in entry:
            raise ConfigError(f"the {name} image has not been pushed", _ARM_HINT if on_arm else _PUSH_HINT)
        found = parse_uri(str(entry["uri"]), int(entry["cuda_major"]))
        return replace(found, processor=ARM if on_arm else X86)
    except FileNotFoundError:
        raise ConfigError("no images have been built and pushed from here", _PUSH_HINT) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{file} is damaged", _PUSH_HINT) from None


def _small(images: Mapping[str, Any]) -> Mapping[str, Any]:
    """The serving image without torch; empty when it was not pushed, or is of another revision than the other."""
    small, large = (images.get(name) or {} for name in ("serve-cpu", "serve"))
    tags = {str(each["image"]).rpartition(":")[2] for each in (small, large) if "image" in each}
    return small if "uri" in small and len(tags) == 1 else {}


def parse_uri(uri: str, cuda_major: int) -> Image:
    """Takes an ECR URI apart. Raises ConfigError for any other: SageMaker pulls from ECR only."""
    match = _ECR.fullmatch(uri)
    if match is None:
        raise ConfigError(f"{uri} is no image in Amazon ECR, where SageMaker pulls from", _PUSH_HINT)
    name = match["name"]
    repository, sign, reference = name.partition("@")
    if not sign:
        repository, _, reference = name.partition(":")
    return Image(
        uri=uri,
        cuda_major=cuda_major,
        account=match["account"],
        region=match["region"],
        repository=repository,
        reference=reference or "latest",
    )
