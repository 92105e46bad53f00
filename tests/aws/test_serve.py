"""`deploy.py serve`, `predict` and `delete` on SageMaker."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.aws.conftest import (
    ENDPOINT,
    REGISTRY,
    client,
    described,
    golden_answers,
    names,
    only_run,
    put_logs,
    set_settings,
    trained,
)
from tests.aws.gate import Body, Fault, Gate

from image_classifier.launch.runs import Status, find_run
from image_classifier.vision.artifact import load_model

Deploy = Callable[..., tuple[int, str, str]]


def nothing_is_left() -> bool:
    return not (
        names("list_endpoints", "EndpointName")
        + names("list_endpoint_configs", "EndpointConfigName")
        + names("list_models", "ModelName")
    )


def test_endpoint_is_made_checked_asked_and_deleted(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path, tmp_path: Path
) -> None:
    gate.invoke = golden_answers(model)
    set_settings(project, max_instances=3, capture_percent=20)
    code, out, err = deploy("serve", str(archive), "--yes")
    assert code == 0, err
    assert out == f"ready {ENDPOINT}\n"
    assert "reproduces its 2 golden samples" in err
    assert "$0.74 an hour until it is deleted, at most $1,612 a month" in err
    run = only_run(project)
    assert run.record().status == Status.COMPLETED
    (config,) = gate.bodies("CreateEndpointConfig")
    (variant,) = config["ProductionVariants"]
    assert variant["InferenceAmiVersion"] == "al2023-ami-sagemaker-inference-gpu-4-1"
    assert config["DataCaptureConfig"]["InitialSamplingPercentage"] == 20
    (target,) = gate.bodies("AnyScaleFrontendService.RegisterScalableTarget")
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    assert client("cloudwatch").describe_alarms()["MetricAlarms"][0]["AlarmName"] == f"{ENDPOINT}-5xx"

    golden = load_model(model).golden
    (tmp_path / "a.jpg").write_bytes(golden[0].image)
    code, out, err = deploy("predict", str(tmp_path / "a.jpg"), "--json", "--top-k", "2")
    assert code == 0, err
    (answer,) = json.loads(out)["predictions"]
    assert answer["predictions"] == [{"label": "daisy", "probability": 0.7}, {"label": "rose", "probability": 0.2}]
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    code, out, err = deploy("predict", str(tmp_path / "bad.jpg"))
    assert code == 1
    assert "the bytes are not a readable image" in out + err

    code, out, err = deploy("delete", run.name)
    assert code == 2  # no terminal to ask on
    code, out, err = deploy("delete", run.name, "--yes")
    assert code == 0, err
    assert f"removed\tendpoint {ENDPOINT}" in out
    assert "left\tthe data set, weights and models in s3://" in out
    assert nothing_is_left()
    assert not client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert not client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    code, out, err = deploy("delete", run.name, "--yes")
    assert "has nothing left on AWS" in err


def test_dry_run_prints_all_requests_and_makes_nothing(
    gate: Gate, deploy: Deploy, project: Path, archive: Path
) -> None:
    set_settings(project, max_instances=2)
    code, out, err = deploy("serve", str(archive), "--dry-run")
    assert code == 0, err
    assert [each["operation"] for each in json.loads(out)] == [
        "create_model",
        "create_endpoint_config",
        "create_endpoint",
        "put_metric_alarm",
        "register_scalable_target",
        "put_scaling_policy",
    ]
    assert nothing_is_left()
    assert not (project / "runs").exists()


def test_model_trained_on_sagemaker_is_copied_inside_s3(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    gate.invoke = golden_answers(model)
    assert deploy("train", "--yes")[0] == 0
    trainer = only_run(project)
    gate.calls.clear()
    code, _, err = deploy("serve", "--yes")
    assert code == 0, err
    assert len(gate.bodies("s3:copy")) == 1
    assert not [body for body in gate.bodies("s3:PUT") if "model.tar.gz" in body["path"]]
    assert deploy("delete", trainer.name, "--yes")[0] == 0
    bucket, _, key = gate.bodies("CreateModel")[0]["PrimaryContainer"]["ModelDataUrl"][5:].partition("/")
    client("s3").head_object(Bucket=bucket, Key=key)  # the endpoint's model outlives the training run


@pytest.mark.parametrize("wrong", ["labels", "not ours"])
def test_endpoint_with_wrong_answers_is_deleted(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path, wrong: str
) -> None:
    gate.invoke = golden_answers(model, wrong=True) if wrong == "labels" else lambda body, headers: (200, b"hello")
    code, out, err = deploy("serve", str(archive), "--yes")
    assert code == 1
    assert ("does not reproduce its golden sample" if wrong == "labels" else "is not our endpoint") in err
    assert f"removed the endpoint {ENDPOINT}" in err
    assert not out
    assert nothing_is_left()
    assert only_run(project).record().status == Status.FAILED


def test_endpoint_that_fails_is_deleted_and_its_log_shown(
    gate: Gate, deploy: Deploy, project: Path, archive: Path
) -> None:
    def failed(body: Body) -> Body:
        return described(body, "Failed", FailureReason="The primary container did not pass the ping health check.")

    def logged(body: Body) -> None:
        put_logs(f"/aws/sagemaker/Endpoints/{ENDPOINT}", "main/i-1", "CUDA driver version is insufficient")
        gate.answer("DescribeEndpoint", failed)

    gate.after["CreateEndpoint"] = logged
    gate.after["DeleteEndpoint"] = lambda body: gate.answers.clear()
    gate.answer("ListTags", lambda body: {"Tags": gate.bodies("CreateEndpoint")[0]["Tags"]})
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 1
    assert "error: the container never answered its health check" in err
    assert "cuda_major" in err
    assert "CUDA driver version is insufficient" in err
    assert nothing_is_left()


def test_cleaning_up_that_fails_names_what_is_left(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    gate.invoke = golden_answers(model, wrong=True)
    gate.fail("DeleteEndpoint", Fault("AccessDeniedException", "no"))
    code, _, err = deploy("serve", str(archive), "--yes")
    run = only_run(project)
    assert code == 1
    assert f"still there: model {run.name}, endpoint config {run.name}, endpoint {ENDPOINT}" in err
    assert f"warning: an endpoint costs money until it is gone: deploy.py delete {run.name}" in err
    assert deploy("delete", run.name, "--yes")[0] == 0
    assert nothing_is_left()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            Fault("ResourceLimitExceeded", "The service limit 'ml.g4dn.xlarge for endpoint usage' is 0 Instances"),
            "error: the account's quota 'ml.g4dn.xlarge for endpoint usage' is 0",
        ),
        (
            Fault("ValidationException", "Cannot create already existing endpoint"),
            "error: the name is taken: Cannot create already existing endpoint",
        ),
    ],
)
def test_refused_endpoint_leaves_no_model_behind(
    gate: Gate, deploy: Deploy, archive: Path, fault: Fault, sentence: str
) -> None:
    gate.fail("CreateEndpoint", fault)
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 1
    assert sentence in err
    assert nothing_is_left()


def test_model_that_is_not_known_yet_is_waited_for(gate: Gate, deploy: Deploy, archive: Path, model: Path) -> None:
    gate.invoke = golden_answers(model)
    gate.fail("CreateEndpointConfig", Fault("ValidationException", 'Could not find model "x".'))
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 0, err
    assert len(gate.bodies("CreateEndpointConfig")) == 2


def test_ctrl_c_while_waiting_says_that_it_costs_money(
    gate: Gate, deploy: Deploy, project: Path, archive: Path
) -> None:
    def interrupt(body: Body) -> Body:
        if gate.bodies("CreateEndpoint"):
            os.kill(os.getpid(), signal.SIGINT)
            return described(body, "Creating")
        raise Fault("ValidationException", 'Could not find endpoint "x".')

    gate.answer("DescribeEndpoint", interrupt)
    code, _, err = deploy("serve", str(archive), "--yes")
    run = only_run(project)
    assert code == 130
    assert "goes on and costs money" in err
    assert f"deploy.py delete {run.name} removes it" in err
    assert run.record().status == Status.IN_PROGRESS
    gate.answers.clear()
    assert deploy("delete", run.name, "--yes")[0] == 0
    assert nothing_is_left()


def test_damaged_archive_is_refused_before_anything_is_made(gate: Gate, deploy: Deploy, project: Path) -> None:
    (project / "model.tar.gz").write_bytes(b"not an archive")
    code, _, err = deploy("serve", "model.tar.gz", "--yes")
    assert code == 1
    assert "truncated, damaged or not a model archive" in err
    assert not gate.bodies("CreateModel")


@pytest.mark.parametrize(
    ("settings", "variant"),
    [
        (
            {"variant": "serverless", "serverless_memory_mb": 3072},
            {"VariantName": "main", "ServerlessConfig": {"MemorySizeInMB": 3072, "MaxConcurrency": 5}},
        ),
        ({"variant": "async", "min_instances": 0, "max_instances": 2}, None),
        ({"serve_image": f"{REGISTRY}/x:1", "cuda_major": 12}, None),
        ({"serve_instance": "ml.c7i.xlarge"}, None),
    ],
)
def test_variants(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, settings: dict[str, Any], variant: Body | None
) -> None:
    text = (project / "deploy.toml").read_text()
    kept = [line for line in text.splitlines() if line.partition(" =")[0] not in settings]
    (project / "deploy.toml").write_text("\n".join(kept) + "\n")
    set_settings(project, **settings)
    code, out, err = deploy("serve", str(archive), "--dry-run")
    assert code == 0, err
    requests = {each["operation"]: each["request"] for each in json.loads(out)}
    (made,) = requests["create_endpoint_config"]["ProductionVariants"]
    if settings.get("variant") == "serverless":
        assert made == {**variant, "ModelName": made["ModelName"]}  # type: ignore[dict-item]
        assert requests["create_model"]["PrimaryContainer"]["Environment"]["CLASSIFIER_ENGINE"] == "openvino"
        assert "put_metric_alarm" not in requests
    elif settings.get("variant") == "async":
        assert requests["create_endpoint_config"]["AsyncInferenceConfig"]["OutputConfig"]["S3OutputPath"]
        assert requests["register_scalable_target"]["MinCapacity"] == 0
    elif settings.get("cuda_major") == 12:
        assert made["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"
    else:
        assert "InferenceAmiVersion" not in made


def test_the_number_format_reaches_the_container_where_one_is_named(gate: Gate, deploy: Deploy, archive: Path) -> None:
    for flags, expected in (((), None), (("--precision", "int8"), {"CLASSIFIER_SERVE_PRECISION": "int8"})):
        code, out, err = deploy("serve", str(archive), "--dry-run", *flags)
        assert code == 0, err
        requests = {each["operation"]: each["request"] for each in json.loads(out)}
        assert requests["create_model"]["PrimaryContainer"].get("Environment") == expected


def test_async_endpoint_answers_through_s3_and_wakes_up_by_an_alarm(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    answers = golden_answers(model)
    s3 = client("s3")

    def invoke(headers: dict[str, str]) -> tuple[str, str]:
        bucket, _, key = headers["X-Amzn-SageMaker-InputLocation"][5:].partition("/")
        found = s3.get_object(Bucket=bucket, Key=key)
        assert found["ServerSideEncryption"] == "aws:kms"
        image = found["Body"].read()
        status, content = answers(image, headers)
        output = gate.bodies("CreateEndpointConfig")[-1]["AsyncInferenceConfig"]["OutputConfig"]
        where = [f"{output[member]}/{key}" for member in ("S3OutputPath", "S3FailurePath")]
        s3.put_object(Bucket=bucket, Key=where[status != 200].removeprefix(f"s3://{bucket}/"), Body=content)
        return where[0], where[1]

    gate.invoke_async = invoke
    set_settings(project, variant="async", min_instances=0, max_instances=2, kms_key="alias/k")
    code, _, err = deploy("serve", str(archive), "--yes")
    assert code == 0, err
    alarms = {alarm["AlarmName"]: alarm for alarm in client("cloudwatch").describe_alarms()["MetricAlarms"]}
    assert alarms[f"{ENDPOINT}-wake"]["AlarmActions"][0].endswith(f"policyName/{ENDPOINT}-wake")
    (project / "bad.jpg").write_bytes(b"no image")
    code, out, err = deploy("predict", "bad.jpg")
    assert code == 1
    assert "the bytes are not a readable image" in out + err
    run = find_run(project / "runs", kind="serve")
    assert deploy("delete", run.name, "--yes")[0] == 0
    assert not client("cloudwatch").describe_alarms()["MetricAlarms"]


def test_documented_snippets_run(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate.invoke = golden_answers(model)
    assert deploy("serve", str(archive), "--yes")[0] == 0
    gate.answer("DescribeEndpoint", lambda body: described(body, "InService"))  # sagemaker-core cannot read moto's
    (project / "photo.jpg").write_bytes(load_model(model).golden[0].image)
    page = (Path(__file__).parents[2] / "docs" / "sagemaker.md").read_text()
    # version 2 of the SDK has an environment of its own: tests/integration/test_aws_clients.py
    snippets = [each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Predictor" not in each]
    assert len(snippets) == 2
    for snippet in snippets:
        capsys.readouterr()
        exec(compile(snippet, "docs/sagemaker.md", "exec"), {})
        assert "{'label': 'daisy', 'probability': 0.7}" in capsys.readouterr().out
