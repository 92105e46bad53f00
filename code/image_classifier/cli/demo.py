"""The whole story on generated images: check, tune, train, serve, predict, and a comparison at the end.

Every step is the command of the same name; the demo adds nothing but the order. It succeeds only when the endpoint
answers to the test images what training wrote down for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from image_classifier.cli import render, settings, show_data, show_jobs
from image_classifier.contract.endpoint import DEFAULT_PORT
from image_classifier.contract.errors import JobError, JobStopped
from image_classifier.contract.files import write_text
from image_classifier.contract.machine import free_port, require_free_port
from image_classifier.contract.outputs import TEST_PREDICTIONS, TUNING_PICTURE
from image_classifier.contract.text import as_text
from image_classifier.launch import local
from image_classifier.launch import serving_run as serving
from image_classifier.launch import training_run as training
from image_classifier.launch.client import Answer, Client, find_images
from image_classifier.launch.process import Interrupts
from image_classifier.launch.progress import duration
from image_classifier.launch.runs import Run
from image_classifier.tuning import tuner as tuning
from image_classifier.vision.gate import FLOAT32
from image_classifier.vision.sample_data import make_sample_data

STEPS = 6
HOST = "127.0.0.1"
TOLERANCE = 0.02  # of a probability: in float32 as in the training, which on a GPU rounds to TF32
SHOWN = 8  # predictions in the table at the end
# From scratch on some hundred small images: many small steps decide, so the batches are small.
SETTINGS = """\
# What `deploy.py demo` uses; every command takes it: python deploy.py --config demo/deploy.toml train
data = "data"
runs_dir = "runs"

[train]
weights = "none"        # the sample images are learned from scratch, nothing is downloaded
image_size = 64
augment = "light"
epochs = 8
label_smoothing = 0.0
log_interval = 4

[tune]
trials = 3
epochs = 4

[tune.search]
lr = { low = 0.005, high = 0.05, log = true }
batch_size = [16, 32]
"""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What training answered to one test image."""

    label: str
    probability: float


def run_demo(folder: Path, *, port: int | None) -> int:
    """Runs the demo in `folder`, serving on 127.0.0.1:`port`; without one on the first free port from 8080 on.

    Returns:
        0 when every served prediction equals the one of the training, 1 otherwise.

    Raises:
        ClassifierError: a step failed.
    """
    started = time.monotonic()
    local.require_trainer()
    local.require_server()
    if port is None:
        port = free_port(HOST, DEFAULT_PORT)
    require_free_port(HOST, port)  # now, and not after minutes of training
    file = folder / settings.FILE_NAME
    if not file.exists():
        write_text(file, SETTINGS)
    chosen = settings.load({}, file=file, environ={})
    data, runs_dir = Path(chosen.general.data), Path(chosen.general.runs_dir)
    step(1, "sample images", f"sample-data {data}")
    if (data / "train").is_dir():
        render.note(f"{data} is there already")
    else:
        render.note(f"{make_sample_data(data)} images: {data}")
    step(2, "look for broken files, duplicates, imbalance", f"check {data}")
    if show_data.check(data, chosen.train, as_json=False) != 0:
        raise JobError(f"the sample images in {data} are not as they were made", f"remove {data} and start again")
    step(3, "search learning rate and batch size", f"--config {file} tune")
    view = render.Console()
    search = tuning.create(chosen.train, chosen.search, chosen.tune, data, runs_dir, view=view)
    found = tuning.run(search, view=view)
    show_jobs.tuned(found)
    step(4, "train with the best of them", f"--config {file} train --best {found.run.name}")
    best = settings.load({}, file=file, best=tuning.find_best(found.run.name, runs_dir), environ={})
    show_jobs.announce(best)
    outcome = training.train(best.train, data, runs_dir, view=view)
    show_jobs.trained(outcome)
    step(5, "serve the model", f"--config {file} serve {outcome.run.name} --port {port} --precision {FLOAT32}")
    answers = ask(outcome.run, data / "test", runs_dir, port)
    step(6, "predict the test images, compare with training", f"predict {data / 'test'} --top-k 1")
    show_data.predictions("", answers[:: max(1, len(answers) // SHOWN)], as_json=False)
    differences = compare(answers, read_expected(outcome.run, data / "test"))
    for difference in differences:
        render.labelled("error", difference)
    if differences:
        return 1
    render.note(f"all {len(answers)} served predictions equal those of the training")
    render.note("")
    render.facts(
        [
            ("model", show_jobs.shorten(outcome.run.archive)),
            ("metrics", show_jobs.shorten(outcome.run.paths.output_data)),
            ("logs", show_jobs.shorten(outcome.run.log)),
            ("tuning picture", show_jobs.shorten(found.run.path / TUNING_PICTURE)),
            ("time", duration(time.monotonic() - started)),
        ],
        title="Demo finished",
    )
    render.note("next, on your own images in mydata/train/CLASS/*.jpg:")
    render.note("  .venv/bin/python deploy.py check mydata")
    render.note("  .venv/bin/python deploy.py train --data mydata")
    render.note(f"or serve the demo's model: .venv/bin/python deploy.py serve {show_jobs.shorten(outcome.run.archive)}")
    return 0


def step(number: int, what: str, command: str) -> None:
    """Announces a step and the command that does the same."""
    for line in ("", f"[{number}/{STEPS}] {what}", f"      python deploy.py {command}"):
        render.note(line)


def ask(run: Run, folder: Path, runs_dir: Path, port: int) -> list[Answer]:
    """Serves the run's model and asks it about every image in `folder`."""
    archive = serving.find_archive(str(run.path), runs_dir)
    with (
        Interrupts() as interrupts,
        serving.serving(archive, runs_dir, interrupts, host=HOST, port=port, precision=FLOAT32) as endpoint,
    ):
        render.note(f"ready {endpoint.url}, model {endpoint.model}")
        answers = list(Client(endpoint.url).predict_all(find_images([folder]), top_k=1))
        if interrupts.count:
            raise JobStopped("interrupted")
    render.note(f"{len(answers)} images answered, endpoint stopped")
    return answers


def read_expected(run: Run, folder: Path) -> dict[str, Expected]:
    """File -> what training answered, from the run's test_predictions.csv; `folder` is the test folder."""
    return {
        as_text(folder / path): Expected(label=predicted, probability=float(probability))
        for path, _, predicted, probability in TEST_PREDICTIONS.read(run.paths.output_data)
    }


def compare(answers: Sequence[Answer], expected: dict[str, Expected]) -> list[str]:
    """A sentence for every image whose answer is not that of the training, within TOLERANCE."""
    differences = [
        f"{file}: training saw this image, the endpoint was not asked"
        for file in expected.keys() - {a.file for a in answers}
    ]
    for answer in answers:
        wanted = expected.get(answer.file)
        if answer.error or wanted is None:
            differences.append(f"{answer.file}: {answer.error or 'training did not see this image'}")
            continue
        label, probability = answer.predictions[0]
        if label != wanted.label or abs(probability - wanted.probability) > TOLERANCE:
            said = f"{wanted.label} {wanted.probability:.4f}"
            differences.append(f"{answer.file}: served {label} {probability:.4f}, training said {said}")
    return differences
