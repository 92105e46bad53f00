"""`deploy.py batch`: many images, one job, no endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.aws.conftest import ACCOUNT, client, golden_answers, only_run, set_settings
from tests.aws.gate import Body, Gate
from tests.conftest import jpeg

from image_classifier.launch.runs import Status

Deploy = Callable[..., tuple[int, str, str]]


def transformed(model: Path) -> Callable[[Body], None]:
    """What the job's container does: an answer NAME.out for each object below the input's prefix."""
    answer = golden_answers(model)

    def run(request: Body) -> None:
        s3 = client("s3")
        source = request["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        bucket, _, prefix = source.removeprefix("s3://").partition("/")
        out_bucket, _, out = request["TransformOutput"]["S3OutputPath"].removeprefix("s3://").partition("/")
        for item in s3.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ()):
            image = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            _, content = answer(image, {"X-Amzn-SageMaker-Custom-Attributes": "top_k=5"})
            name = item["Key"].removeprefix(prefix)
            s3.put_object(Bucket=out_bucket, Key=f"{out}/{name}.out", Body=content)

    return run


def on_a_cpu(project: Path) -> None:
    text = (project / "deploy.toml").read_text()
    (project / "deploy.toml").write_text(text.replace("ml.g4dn.xlarge", "ml.m5.xlarge"))


def test_folder_is_answered_and_bad_images_are_named(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    gate.after["CreateTransformJob"] = transformed(model)
    photos = project / "photos"
    photos.mkdir()
    for i in range(2):
        (photos / f"{i}.jpg").write_bytes(jpeg(i))
    (photos / "broken.jpg").write_bytes(b"no image")
    on_a_cpu(project)
    code, out, err = deploy("batch", "photos", "--model", str(archive), "--yes", "--json")
    assert code == 1, err  # one of the images is bad
    answers = {Path(each["file"]).name: each for each in json.loads(out)["predictions"]}
    assert answers["0.jpg"]["predictions"][0] == {"label": "daisy", "probability": 0.7}
    assert "error" in answers["broken.jpg"]
    (sent,) = gate.bodies("CreateTransformJob")
    assert sent["TransformInput"]["ContentType"] == "application/x-image"
    assert sent["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"].endswith("/questions/")
    run = only_run(project)
    assert run.record().status == Status.COMPLETED
    code, out, err = deploy("delete", run.name, "--yes")
    assert code == 0, err
    assert not client("sagemaker").list_models()["Models"]
    assert not [item for item in bucket_keys() if f"/runs/{run.name}/" in item]


def test_images_are_encrypted_with_the_users_key(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    answer = transformed(model)
    encryption: list[tuple[str, str]] = []

    def look(request: Body) -> None:
        source = request["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        bucket, _, prefix = source.removeprefix("s3://").partition("/")
        question = client("s3").head_object(Bucket=bucket, Key=f"{prefix}000000.jpg")
        encryption.append((question.get("ServerSideEncryption", ""), question.get("SSEKMSKeyId", "")))
        answer(request)

    gate.after["CreateTransformJob"] = look
    on_a_cpu(project)
    set_settings(project, kms_key="alias/k")
    (project / "photo.jpg").write_bytes(jpeg(0))
    code, _, err = deploy("batch", "photo.jpg", "--model", str(archive), "--yes")
    assert code == 0, err
    assert encryption == [("aws:kms", "alias/k")]


def test_s3_prefix_is_taken_as_it_is(gate: Gate, deploy: Deploy, archive: Path) -> None:
    code, out, err = deploy("batch", "s3://photos/2026", "--model", str(archive), "--dry-run")
    assert code == 2
    assert "no GPU driver for CUDA 13" in err  # the settings name a GPU type
    assert not out


def test_arm64_is_refused_as_batch_jobs_have_none(
    deploy: Deploy, project: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSIFIER_SAGEMAKER_SERVE_INSTANCE", "ml.c8g.xlarge")
    code, out, err = deploy("batch", "s3://photos/2026", "--model", str(archive), "--yes")
    assert (code, out) == (2, "")
    assert "serve_instance is ml.c8g.xlarge: SageMaker has no arm64 processors for batch jobs" in err
    assert not (project / "runs").exists()


def test_failed_batch_names_its_reason(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    on_a_cpu(project)

    def failed(body: Body) -> Body:
        request = gate.bodies("CreateTransformJob")[0]
        return {
            "TransformJobName": body["TransformJobName"],
            "TransformJobArn": f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:transform-job/x",
            "TransformJobStatus": "Failed",
            "FailureReason": "ClientError: 400 bad image",
            "ModelName": "m",
            "TransformInput": request["TransformInput"],
            "TransformResources": request["TransformResources"],
            "CreationTime": 1_700_000_000,
        }

    gate.answer("DescribeTransformJob", failed)
    code, _, err = deploy("batch", "s3://photos/2026/", "--model", str(archive), "--yes")
    assert code == 1
    assert "error: ClientError: 400 bad image" in err
    assert gate.bodies("CreateTransformJob")[0]["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"] == (
        "s3://photos/2026/"
    )
    assert only_run(project).record().status == Status.FAILED


def bucket_keys() -> list[str]:
    s3 = client("s3")
    buckets = [each["Name"] for each in s3.list_buckets()["Buckets"]]
    return [item["Key"] for name in buckets for item in s3.list_objects_v2(Bucket=name).get("Contents", ())]
