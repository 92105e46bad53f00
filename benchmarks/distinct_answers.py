"""A model for the endpoint's benchmark: untrained, and yet with an answer of its own to each of many photographs.

A server that ignores what it is sent, or mixes requests up, gives itself away.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from benchmarks import stock_server
from benchmarks.load_client import CLASSES, Question
from PIL import Image

from image_classifier.training.golden import golden_samples
from image_classifier.training.number_formats import Measured, measure_formats
from image_classifier.vision.artifact import write_model
from image_classifier.vision.folders import Split
from image_classifier.vision.model import build_model, head, state_arrays
from image_classifier.vision.preprocess import Preprocessing, load
from image_classifier.vision.sample_data import make_sample_data

SIZE = (500, 375)  # pixels
NOISE = 6.0  # levels: sensor noise, which is what makes a photograph's file large
SCENES = 48  # as many different answers
MARGIN = 12.0  # logits between a photograph's own class and the others
RIDGE = 1e-3  # of the mean square of a photograph's features


def make_model(folder: Path) -> list[Question]:
    """Both forms of the model below `folder`, and what it answers to the photographs.

    Raises:
        RuntimeError: two photographs have the same answer, or a number format changes too much to be compared.
    """
    shown, others = (make_photos(folder / name, seed) for seed, name in enumerate(("shown", "others")))
    preprocessing = Preprocessing.for_image_size(224)
    torch.manual_seed(0)
    model = build_model(len(CLASSES))
    images = torch.stack([torch.from_numpy(load(path, preprocessing)) for path in shown.paths])
    answer_apart(model, images.to(memory_format=torch.channels_last), shown.labels)
    with torch.inference_mode():
        answers = [int(model(image[None])[0].argmax()) for image in images]
    if len(set(answers)) < SCENES:
        raise RuntimeError(f"only {len(set(answers))} different answers to {SCENES} photographs")
    measured = measure_formats(model, shown, others, preprocessing)
    if refused := [gate.refusal for gate in measured.gates.values() if gate.refusal]:
        raise RuntimeError(f"the model is not fit for this benchmark: {refused}")
    write_models(folder, model, shown, preprocessing, measured)
    return [Question(path.read_bytes(), answer) for path, answer in zip(shown.paths, answers, strict=True)]


def find_or_make_model(folder: Path) -> list[Question]:
    """As `make_model`, but what an earlier run has finished in `folder` is taken as it is."""
    done = folder / "answers.json"
    if done.is_file():
        answers: dict[str, int] = json.loads(done.read_text())
        return [Question((folder / "shown" / name).read_bytes(), answer) for name, answer in answers.items()]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    questions = make_model(folder)
    names = sorted(path.name for path in (folder / "shown").glob("*.jpg"))
    answers = dict(zip(names, (question.answer for question in questions), strict=True))
    done.write_text(json.dumps(answers))
    return questions


def make_photos(root: Path, seed: int) -> Split:
    """Different sample pictures, enlarged, each with noise of its own, as a split with a class for each."""
    rng = np.random.default_rng(seed)
    paths, labels = [], range(1, 2 * SCENES, 2)
    with TemporaryDirectory() as folder:
        make_sample_data(Path(folder) / "base", train_per_class=16, valid_per_class=0, test_per_class=0, size=192)
        for number, source in enumerate(sorted(Path(folder).glob("base/train/*/*.jpg"))[:SCENES]):
            picture = np.asarray(Image.open(source).resize(SIZE, Image.Resampling.BICUBIC))
            noisy = np.clip(picture + rng.normal(0, NOISE, picture.shape), 0, 255).astype(np.uint8)
            paths.append(root / f"{number:02d}.jpg")
            root.mkdir(exist_ok=True)
            Image.fromarray(noisy).save(paths[-1], quality=90)
    return Split(name=root.name, root=root, paths=tuple(paths), labels=tuple(labels))


def answer_apart(model: torch.nn.Module, images: torch.Tensor, labels: Sequence[int]) -> None:
    """Makes the network, in place, give each of (n, 3, H, W) images its own label, with a clear margin.

    Its batch norms take the images' statistics, as after training, and its head is the ridge regression on them.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
            if name.endswith("bn3"):
                torch.nn.init.constant_(module.weight, 0.3)  # as trained: a block adds less than it is given
            module.momentum = None  # the mean over all batches
    seen: list[torch.Tensor] = []
    model.avgpool.register_forward_hook(lambda _, __, output: seen.append(output.flatten(1).double()))  # type: ignore[union-attr,operator]
    with torch.no_grad():
        for batch in images.split(16):
            model.train()(batch)
        seen.clear()
        for batch in images.split(16):
            model.eval()(batch)
        features = torch.cat(seen)
        centre = features.mean(0)
        spread = features - centre
        gram = spread @ spread.T
        wanted = MARGIN * torch.nn.functional.one_hot(torch.tensor(labels), len(CLASSES)).double()
        damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(images))
        weight = spread.T @ torch.linalg.solve(damped, wanted)
        head(model).weight.copy_(weight.T)  # type: ignore[operator,union-attr,arg-type]
        head(model).bias.copy_(-(centre @ weight))  # type: ignore[operator,union-attr]


def write_models(
    folder: Path, model: torch.nn.Module, shown: Split, preprocessing: Preprocessing, measured: Measured
) -> None:
    """Our artifact, and a state dict with the stock handler's script."""
    write_model(
        folder / "ours" / "model",
        weights=state_arrays(model),  # type: ignore[arg-type]
        classes=CLASSES,
        preprocessing=preprocessing,
        golden=golden_samples(model, shown, preprocessing, 4),
        config={},
        metrics={},
        data_fingerprint="0" * 64,
        versions={},
        ranges=measured.ranges,
        gates=measured.gates,
    )
    torch.save(model.state_dict(), folder / "weights.pth")
    stock_server.write_model(folder / "stock", folder / "weights.pth")
