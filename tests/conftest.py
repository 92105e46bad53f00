"""Parts that many tests share."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from image_classifier.debugging.smdebug_loading import make_importable

make_importable()  # some tests read with smdebug itself
# Networks this small gain nothing from more threads, and lose much where the cores are shared with others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    import torch

    from image_classifier.debugging.rules.base import Rule

TESTS = Path(__file__).parent
MODEL_CLASSES = ("daisy", 'comma, "quoted"', "Löwenzahn", "日本桜", "rose", "tulip")  # what CSV and JSON must carry


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks every test by its folder: `pytest -m "not container"` leaves out what needs Docker."""
    for item in items:
        item.add_marker(item.path.relative_to(TESTS).parts[0])


class ByFile(LoadScopeScheduling):
    """Shares the tests out by file; those of the images and of the account's stand-in stay together, as what they share
    is slow to make."""

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.split("/")[1]
        return folder if folder in ("aws", "container") else nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """How `pytest -n` shares the tests out."""
    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A job or a command that a test runs in this process sets logging up: the next test would find it so."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(False)


def jpeg(seed: int, width: int = 90, height: int = 70) -> bytes:
    """A small picture with soft shapes, as a JPEG."""
    blobs = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def draw_norms(model: torch.nn.Module) -> None:
    """Random batch norms, as after training: none is the identity, no branch is dead."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.fixture
def registry() -> Iterator[dict[str, type[Rule]]]:
    """The list of the debugger's rules, for a test that defines some: they are taken out after it."""
    from image_classifier.debugging.rules import RULES

    before = dict(RULES)
    yield RULES
    RULES.clear()
    RULES.update(before)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model artifact of an untrained ResNet50 at 64 pixels with three golden samples. Shared: do not change it."""
    import torch

    from image_classifier.vision.artifact import GoldenSample, write_model
    from image_classifier.vision.model import build_model, state_arrays
    from image_classifier.vision.preprocess import Preprocessing, load

    torch.manual_seed(0)
    model = build_model(len(MODEL_CLASSES))
    draw_norms(model)
    torch.nn.init.normal_(model.fc.weight, 0.0, 0.5)  # answers that differ from picture to picture
    model.eval()
    preprocessing = Preprocessing.for_image_size(64)
    images = [jpeg(seed) for seed in range(3)]
    with torch.inference_mode():
        batch = torch.stack([torch.from_numpy(load(image, preprocessing)) for image in images])
        answers = model(batch).softmax(1).tolist()
    directory = tmp_path_factory.mktemp("model")
    write_model(
        directory,
        weights=state_arrays(model),
        classes=MODEL_CLASSES,
        preprocessing=preprocessing,
        golden=[
            GoldenSample(f"{i}.jpg", image, tuple(p)) for i, (image, p) in enumerate(zip(images, answers, strict=True))
        ],
        config={},
        metrics={},
        data_fingerprint="0" * 64,
        versions={},
    )
    return directory
