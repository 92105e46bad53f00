"""AWS on loopback, an account in it, and `deploy.py` with that account's settings."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.aws.gate import Body, Gate, wait_for_port
from tests.aws.policy import CHANGES, allows, filled, of_others, refused
from tests.conftest import jpeg

from image_classifier.cli.main import main
from image_classifier.launch.runs import Run, list_runs
from image_classifier.sagemaker import training_job as train
from image_classifier.sagemaker import watch
from image_classifier.vision.artifact import GoldenSample, load_model, pack, write_model
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.sample_data import make_sample_data

ACCOUNT = "123456789012"  # moto's
REGION = "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/service-role/classifier"
REGISTRY = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
BUCKET = f"sagemaker-{REGION}-{ACCOUNT}"
FOREIGN_BUCKET = "somebody-elses"
ENDPOINT = "image-classifier"
JOB_ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/train-x"
ENDPOINT_ARN = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/{ENDPOINT}"
SETTINGS = f"""
target = "sagemaker"
data = "data"

[train]
weights = "none"
image_size = 64
epochs = 3

[tune]
trials = 3
parallel = 2

[tune.search]
lr = {{ low = 0.001, high = 0.1, log = true }}
batch_size = [2, 4]

[sagemaker]
role = "{ROLE}"
train_image = "{REGISTRY}/image-classifier-train:1"
serve_image = "{REGISTRY}/image-classifier-serve:1"
serve_instance = "ml.g4dn.xlarge"
"""


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "moto_server"), "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port, 60)
            yield port
        finally:
            server.send_signal(signal.SIGINT)


@pytest.fixture(scope="session")
def shared_gate(moto_port: int) -> Iterator[Gate]:
    gate = Gate(moto_port)
    yield gate
    gate.close()
    deployer = filled()
    # a test or two try the bucket of somebody else
    used = {need for need in gate.needed if not need.resource.startswith(f"arn:aws:s3:::{FOREIGN_BUCKET}")}
    assert refused(deployer, used) == []  # all that deploy.py did in these tests, a deployer may do
    changes = {need for need in used if CHANGES.match(need.action)}
    theirs = {other for need in changes for other in of_others(need)}
    assert [other for other in theirs if allows(deployer, other)] == []  # and none of it to other teams' things


@pytest.fixture
def gate(shared_gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gate]:
    """AWS, empty; this process is signed in to it."""
    shared_gate.reset()
    for name, value in {
        "AWS_ENDPOINT_URL": shared_gate.url,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(watch, "EVERY_S", 0.01)
    monkeypatch.setattr(train, "LOG_LAG_S", 0.0)
    yield shared_gate
    assert not shared_gate.refused, shared_gate.refused


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aws") / "data"
    make_sample_data(folder, num_classes=2, train_per_class=3, valid_per_class=1, test_per_class=1, size=32)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model artifact whose weights are a few numbers: nothing here looks into them."""
    folder = tmp_path_factory.mktemp("model")
    golden = [GoldenSample(f"{i}.jpg", jpeg(i), (0.7, 0.2, 0.1)) for i in range(2)]
    write_model(
        folder,
        weights={"fc.weight": np.zeros((3, 4), np.float32)},
        classes=("daisy", "rose", "tulip"),
        preprocessing=Preprocessing.for_image_size(64),
        golden=golden,
        config={},
        metrics={},
        data_fingerprint="0" * 64,
        versions={},
    )
    return folder


@pytest.fixture(scope="session")
def archive(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    pack(model, path)
    return path


@pytest.fixture
def project(gate: Gate, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of deploy.py, with settings and data."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "deploy.toml").write_text(SETTINGS)
    (folder / "data").symlink_to(data)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def deploy(project: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs deploy.py; returns exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def client(service: str) -> Any:
    import boto3

    make: Any = boto3.client
    return make(service, region_name=REGION)


def only_run(project: Path) -> Run:
    (run,) = list_runs(project / "runs")
    return run


def set_settings(project: Path, **values: object) -> None:
    """Adds settings to `[sagemaker]`."""
    with (project / "deploy.toml").open("a") as file:
        for name, value in values.items():
            file.write(f"{name} = {json.dumps(value)}\n")


def trained(model: Path, *, history: list[dict[str, float]] | None = None) -> Callable[[dict[str, Any]], None]:
    """What the container of a training job does: log, and leave a model and its metrics in S3."""
    rows = history or [
        {"epoch": 1, "validation:accuracy": 0.5, "validation:loss": 0.7},
        {"epoch": 2, "validation:accuracy": 1.0, "validation:loss": 0.2},
    ]

    def run(request: dict[str, Any]) -> None:
        put_logs(
            "/aws/sagemaker/TrainingJobs",
            f"{request['TrainingJobName']}/algo-1-1700000000",
            "12:00:01 metrics epoch=1 train:loss=0.9 validation:loss=0.7 validation:accuracy=0.5",
            "12:00:02 metrics epoch=2 train:loss=0.5 validation:loss=0.2 validation:accuracy=1",
        )
        put_outputs(request["OutputDataConfig"]["S3OutputPath"], request["TrainingJobName"], model, rows)

    return run


def put_outputs(output: str, job: str, model: Path | None, history: list[dict[str, float]]) -> None:
    """What SageMaker makes of /opt/ml/model and /opt/ml/output/data."""
    best = max(history, key=lambda row: row["validation:accuracy"])
    metrics = {name: value for name, value in best.items() if ":" in name}
    result = {"best_epoch": int(best["epoch"]), "epochs": len(history), "metrics": metrics | {"test:accuracy": 0.75}}
    files = {
        "metrics.json": json.dumps(result),
        "history.jsonl": "".join(json.dumps(row) + "\n" for row in history),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    bucket, _, prefix = output.removeprefix("s3://").partition("/")
    s3 = client("s3")
    s3.put_object(Bucket=bucket, Key=f"{prefix}/{job}/output/output.tar.gz", Body=buffer.getvalue())
    if model is not None:
        s3.upload_file(str(model), bucket, f"{prefix}/{job}/output/model.tar.gz")


def put_logs(group: str, stream: str, *lines: str) -> None:
    logs = client("logs")
    with suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(time.time() * 1000)
    events = [{"timestamp": now + i, "message": line} for i, line in enumerate(lines)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def golden_answers(model: Path, *, wrong: bool = False) -> Callable[[bytes, dict[str, str]], tuple[int, bytes]]:
    """An endpoint that answers the golden samples as training did, or with the labels in another order."""
    artifact = load_model(model)
    known = {sample.image: sample.probabilities for sample in artifact.golden}

    def invoke(body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        if body not in known:
            return 400, json.dumps({"error": "the bytes are not a readable image", "hint": "send a JPEG"}).encode()
        classes = artifact.classes[1:] + artifact.classes[:1] if wrong else artifact.classes
        pairs = sorted(zip(classes, known[body], strict=True), key=lambda pair: -pair[1])
        top = int(headers["X-Amzn-SageMaker-Custom-Attributes"].removeprefix("top_k="))
        ranked = [{"label": label, "probability": p} for label, p in pairs[:top]]
        return 200, json.dumps({"predictions": ranked, "model": artifact.fingerprint}).encode()

    return invoke


def names(listing: str, member: str) -> list[str]:
    """One member of each item of a SageMaker listing, e.g. `list_models`, `ModelName`."""
    reply = getattr(client("sagemaker"), listing)()
    return [each[member] for each in next(value for value in reply.values() if isinstance(value, list))]


def described(body: Body, status: str, **more: Any) -> Body:
    """DescribeEndpoint's reply."""
    return {
        "EndpointName": body["EndpointName"],
        "EndpointArn": ENDPOINT_ARN,
        "EndpointStatus": status,
        "EndpointConfigName": "serve-old",
        "CreationTime": 1_700_000_000,
        "LastModifiedTime": 1_700_000_000,
        **more,
    }


def describe_as(gate: Gate, **state: Any) -> None:
    """DescribeTrainingJob answers with these members."""

    def answer(request: Body) -> Body:
        return {
            "TrainingJobName": request["TrainingJobName"],
            "TrainingJobArn": JOB_ARN,
            "ModelArtifacts": {"S3ModelArtifacts": "s3://b/model.tar.gz"},
            "SecondaryStatus": "Failed",
            "AlgorithmSpecification": {"TrainingInputMode": "File"},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            "CreationTime": 1_700_000_000,
            **state,
        }

    gate.answer("DescribeTrainingJob", answer)
