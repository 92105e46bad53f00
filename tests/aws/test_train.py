"""`deploy.py train` on SageMaker."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.aws.conftest import ACCOUNT, BUCKET, client, describe_as, only_run, set_settings, trained
from tests.aws.gate import Body, Fault, Gate

from image_classifier.contract.config import TrainConfig
from image_classifier.launch.runs import Status, find_run
from image_classifier.vision.artifact import pack
from image_classifier.vision.network import tensor_shapes

Deploy = Callable[..., tuple[int, str, str]]


def without_names(request: Any) -> Any:
    """A request without what differs from run to run."""
    text = json.dumps(request)
    run = next(tag["Value"] for tag in request["Tags"] if tag["Key"].endswith(":run"))
    identity = next(tag["Value"] for tag in request["Tags"] if tag["Key"].endswith(":id"))
    return json.loads(text.replace(run, "RUN").replace(identity, "ID"))


def test_train_brings_log_model_and_metrics_back(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    code, out, err = deploy("train", "--yes")
    assert code == 0, err
    run = only_run(project)
    assert run.record().status == Status.COMPLETED
    assert run.archive.read_bytes() == archive.read_bytes()
    assert json.loads((run.paths.output_data / "metrics.json").read_text())["best_epoch"] == 2
    assert "metrics epoch=2" in run.log.read_text()
    assert "test accuracy\t0.7500" in out
    assert "epoch 2/3" in err
    assert "cost: 1 training job on 1 x ml.g5.xlarge: $1.41 an hour, at most $5.63 in all" in err


def test_dry_run_prints_the_very_request_that_is_sent(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    set_settings(project, spot=True, kms_key="alias/k", subnets="subnet-1", security_groups="sg-1", tags="team=vision")
    code, out, err = deploy("train", "--dry-run")
    assert code == 0, err
    (printed,) = json.loads(out)
    assert not {operation for operation in gate.operations() if operation.startswith("Create")}
    assert not (project / "runs").exists()
    gate.after["CreateTrainingJob"] = trained(archive)
    assert deploy("train", "--yes")[0] == 0
    (sent,) = gate.bodies("CreateTrainingJob")
    assert without_names(sent) == without_names(printed["request"])
    (kept,) = json.loads((only_run(project).path / "request.json").read_text())
    assert sent == kept["request"]  # also what sagemaker-core made of it
    assert sent["EnableManagedSpotTraining"] is True
    assert sent["StoppingCondition"] == {"MaxRuntimeInSeconds": 14_400, "MaxWaitTimeInSeconds": 28_800}
    assert sent["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert {"Key": "team", "Value": "vision"} in sent["Tags"]
    assert TrainConfig.from_hyperparameters(sent["HyperParameters"]) == TrainConfig(
        weights="none", image_size=64, epochs=3
    )
    objects = client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]
    for channel in sent["InputDataConfig"]:
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        assert any(f"s3://{BUCKET}/{item['Key']}".startswith(uri) for item in objects)


def test_only_changed_images_are_sent_again(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, data: Path
) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    (project / "data").unlink()
    shutil.copytree(data, project / "data")
    images = sorted((project / "data").rglob("*.jpg"))
    assert deploy("train", "--yes")[0] == 0

    def images_sent() -> int:
        return sum("/data/" in body["path"] and body["path"].endswith(".jpg") for body in gate.bodies("s3:PUT"))

    assert images_sent() == len(images)
    gate.calls.clear()
    assert deploy("train", "--yes")[0] == 0
    assert images_sent() == 0
    assert not gate.bodies("s3:copy")
    images[0].write_bytes(images[0].read_bytes() + b"changed")
    gate.calls.clear()
    code, _, err = deploy("train", "--yes")
    assert code == 0, err
    assert images_sent() == 1
    assert len(gate.bodies("s3:copy")) == len(images) - 1


def test_interrupted_upload_goes_on_where_it_was(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    client("s3").create_bucket(Bucket=BUCKET)
    gate.calls.clear()
    gate.fail("s3:PUT", *[Fault("AccessDenied", "Access Denied", 403)] * 3)
    code, _, err = deploy("train", "--yes")
    assert code == 1
    assert "error: not allowed to put object: Access Denied" in err
    assert "docs/iam-deployer-policy.json" in err
    gate.faults.clear()
    arrived = {item["Key"] for item in client("s3").list_objects_v2(Bucket=BUCKET).get("Contents", ())}
    gate.calls.clear()
    assert deploy("train", "--yes")[0] == 0
    sent = [body["path"].removeprefix(f"/{BUCKET}/").partition("?")[0] for body in gate.bodies("s3:PUT")]
    assert arrived
    assert not arrived & set(sent)
    assert find_run(project / "runs").record().status == Status.COMPLETED


def test_ctrl_c_leaves_the_job_running_and_status_fetches_it(
    gate: Gate, deploy: Deploy, project: Path, archive: Path
) -> None:
    def interrupt(body: Body) -> Body:
        os.kill(os.getpid(), signal.SIGINT)
        raise Fault("ThrottlingException", "so that it cannot have ended")

    outputs = trained(archive)

    def created(body: Body) -> None:
        outputs(body)
        gate.answers["Logs_20140328.DescribeLogStreams"] = interrupt

    gate.after["CreateTrainingJob"] = created
    code, _, err = deploy("train", "--yes")
    assert code == 130
    assert "goes on on SageMaker" in err
    run = only_run(project)
    assert run.record().status == Status.IN_PROGRESS
    assert not gate.bodies("StopTrainingJob")
    gate.answers.clear()
    code, out, err = deploy("status", run.name)
    assert code == 0, err
    assert "status\tCompleted" in out
    assert run.archive.is_file()


def test_resume_starts_another_job_from_the_same_checkpoints(
    gate: Gate, deploy: Deploy, project: Path, archive: Path
) -> None:
    gate.after["CreateTrainingJob"] = lambda _: describe_as(
        gate, TrainingJobStatus="Stopped", SecondaryStatus="MaxRuntimeExceeded"
    )
    assert deploy("train", "--yes")[0] == 143
    gate.answers.clear()
    gate.after["CreateTrainingJob"] = trained(archive)
    code, _, err = deploy("train", "--resume", only_run(project).name, "--yes")
    assert code == 0, err
    first, second = gate.bodies("CreateTrainingJob")
    assert first["CheckpointConfig"] == second["CheckpointConfig"]
    assert first["CheckpointConfig"]["S3Uri"].endswith("/checkpoints/")
    assert first["InputDataConfig"] == second["InputDataConfig"]
    assert second["TrainingJobName"] == f"{first['TrainingJobName']}-r2"


@pytest.mark.parametrize("name", ["mine.safetensors", "model.tar.gz"])
def test_weights_file_becomes_a_channel(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model_dir: Path, name: str
) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    save_file(
        {tensor: np.zeros(shape, np.float32) for tensor, shape in tensor_shapes(2).items()},
        project / "mine.safetensors",
    )
    pack(model_dir, project / "model.tar.gz")
    code, _, err = deploy("train", "--yes", "--weights", name)
    assert code == 0, err
    (sent,) = gate.bodies("CreateTrainingJob")
    assert sent["HyperParameters"]["weights"] == name
    (channel,) = [each for each in sent["InputDataConfig"] if each["ChannelName"] == "weights"]
    folder = channel["DataSource"]["S3DataSource"]["S3Uri"]
    keys = [item["Key"] for item in client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert f"{folder}{name}".removeprefix(f"s3://{BUCKET}/") in keys


@pytest.mark.parametrize(
    ("settings", "sentence", "hint"),
    [
        ({"role": "none"}, "no role is set", "docs/sagemaker.md"),
        (
            {"train_image": f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com/image-classifier-train:1"},
            "the image is in eu-west-1, the jobs run in us-east-1",
            "AWS_REGION=us-east-1 make push",
        ),
        ({"train_image": "docker.io/me/train:1"}, "is no image in Amazon ECR", "make build push"),
        ({"train_instance": "ml.g5.huge"}, "CreateTrainingJob would be refused: ResourceConfig.InstanceType", "["),
        ({"kms_key": "no spaces please"}, "CreateTrainingJob would be refused", "KmsKeyId"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    gate: Gate, deploy: Deploy, project: Path, settings: dict[str, str], sentence: str, hint: str
) -> None:
    text = (project / "deploy.toml").read_text()
    kept = [line for line in text.splitlines() if line.partition(" =")[0] not in settings]
    (project / "deploy.toml").write_text("\n".join(kept) + "\n")
    set_settings(project, **settings)
    code, _, err = deploy("train", "--dry-run")
    assert code in {1, 2}
    assert sentence in err
    assert hint in err
    assert not {name for name in gate.operations() if name.startswith(("Create", "s3:PUT"))}


def test_money_is_not_spent_without_being_asked(gate: Gate, deploy: Deploy, project: Path) -> None:
    code, _, err = deploy("train")
    assert code == 2
    assert "this costs money, and there is no terminal to ask on" in err
    assert not (project / "runs").exists()
    assert not gate.bodies("CreateTrainingJob")


def test_managed_debugger_is_attached_when_asked_for(deploy: Deploy, project: Path) -> None:
    assert "DebugHookConfig" not in json.loads(deploy("train", "--dry-run")[1])[0]["request"]
    set_settings(project, managed_debugger=True)
    code, out, err = deploy("train", "--dry-run", "--rules", "VanishingGradient,LowGPUUtilization")
    assert code == 0, err
    request = json.loads(out)[0]["request"]
    (rule,) = request["DebugRuleConfigurations"]
    assert rule["RuleConfigurationName"] == "VanishingGradient"
    assert rule["RuleEvaluatorImage"].startswith(
        "503895931360.dkr.ecr.us-east-1.amazonaws.com/sagemaker-debugger-rules"
    )
    assert request["DebugHookConfig"]["S3OutputPath"].startswith(f"s3://{BUCKET}/image-classifier/runs/")
    (profiler,) = request["ProfilerRuleConfigurations"]
    assert profiler["RuleConfigurationName"] == "LowGPUUtilization"


def test_run_on_sagemaker_is_not_resumed_here(gate: Gate, deploy: Deploy, project: Path) -> None:
    gate.fail("CreateTrainingJob", Fault("ValidationException", "no"))
    assert deploy("train", "--yes")[0] == 1
    code, _, err = deploy("--target", "local", "train", "--resume", only_run(project).name)
    assert code == 2
    assert "ran on SageMaker" in err


@pytest.mark.parametrize(("reply", "code"), [("n\n", 143), ("y\n", 0)])
def test_a_person_on_a_terminal_is_asked(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, reply: str, code: int
) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    gate.after["CreateTrainingJob"] = trained(archive)
    monkeypatch.setattr(sys, "stdin", Keyboard(reply))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    ended, _, err = deploy("train")
    assert ended == code, err
    assert "at most $5.63" in err
    assert bool(gate.bodies("CreateTrainingJob")) == (reply == "y\n")
    assert (project / "runs").exists() == (reply == "y\n")
