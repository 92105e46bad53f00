"""`deploy.py register`, and `serve` from the model registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.aws.conftest import ACCOUNT, ENDPOINT, REGION, client, golden_answers, names, only_run, trained
from tests.aws.gate import Fault, Gate

from image_classifier.launch.runs import find_run
from image_classifier.vision.artifact import load_model

Deploy = Callable[..., tuple[int, str, str]]
PACKAGE = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:model-package/image-classifier/"


def version(gate: Gate, asked: dict[str, Any], number: int = 1, **changed: Any) -> None:
    """The registry has the version that was asked for. moto gives versions other ARNs."""

    def describe(_: dict[str, Any]) -> dict[str, Any]:
        kept = ("InferenceSpecification", "ModelApprovalStatus", "CustomerMetadataProperties")
        return {
            "ModelPackageName": "image-classifier",
            "ModelPackageArn": f"{PACKAGE}{number}",
            "CreationTime": 1_700_000_000,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            **{name: asked[name] for name in kept},
            **changed,
        }

    gate.answer("DescribeModelPackage", describe)


def registry(gate: Gate) -> None:
    made: list[str] = []

    def create(body: dict[str, Any]) -> dict[str, Any]:
        made.append(f"{PACKAGE}{len(made) + 1}")
        version(gate, body)
        return {"ModelPackageArn": made[-1]}

    gate.answer("CreateModelPackage", create)
    gate.answer("UpdateModelPackage", lambda body: {"ModelPackageArn": body["ModelPackageArn"]})


def test_a_model_becomes_a_version_with_its_metrics_and_is_served_once_it_is_approved(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    registry(gate)
    gate.after["CreateTrainingJob"] = trained(archive)
    gate.invoke = golden_answers(model)
    assert deploy("train", "--yes")[0] == 0
    trainer = only_run(project)
    code, out, err = deploy("register", trainer.name)
    assert code == 0, err
    assert "version\timage-classifier/1" in out
    assert "register --approve image-classifier/1" in err
    (group,), (asked,) = gate.bodies("CreateModelPackageGroup"), gate.bodies("CreateModelPackage")
    assert group["ModelPackageGroupName"] == asked["ModelPackageGroupName"] == "image-classifier"
    assert "Tags" not in asked  # SageMaker refuses them: a version has its group's
    assert asked["ModelApprovalStatus"] == "PendingManualApproval"
    (container,) = asked["InferenceSpecification"]["Containers"]
    assert container["Image"].endswith("/image-classifier-serve:1")
    facts = asked["CustomerMetadataProperties"]
    assert facts["run"] == trainer.name
    assert facts["job"] == gate.bodies("CreateTrainingJob")[0]["TrainingJobName"]
    assert (facts["model"], facts["cuda_major"]) == (load_model(model).fingerprint, "13")
    for url in (container["ModelDataUrl"], asked["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"]):
        bucket, _, key = url.removeprefix("s3://").partition("/")
        client("s3").head_object(Bucket=bucket, Key=key)

    code, _, err = deploy("serve", "image-classifier/1", "--yes")
    assert (code, "image-classifier/1 is PendingManualApproval, not Approved" in err) == (2, True)
    assert not names("list_models", "ModelName")
    code, out, err = deploy("register", "--approve", "image-classifier/1")
    assert code == 0, err
    assert gate.bodies("UpdateModelPackage") == [
        {"ModelPackageArn": f"{PACKAGE}1", "ModelApprovalStatus": "Approved"},
    ]
    assert deploy("delete", trainer.name, "--yes")[0] == 0  # the version does not need the run that trained it
    version(gate, asked, ModelApprovalStatus="Approved")
    made = find_run(project / "runs", kind="register")
    for text in (f"{PACKAGE}1", made.name):
        code, out, err = deploy("serve", text, "--dry-run")
        assert code == 0, err
        assert json.loads(out)[0]["request"]["PrimaryContainer"] == {"ModelPackageName": f"{PACKAGE}1"}
    code, out, err = deploy("serve", "image-classifier/1", "--yes")
    assert code == 0, err
    assert out == f"ready {ENDPOINT}\n"
    assert gate.bodies("CreateModel")[0]["PrimaryContainer"] == {"ModelPackageName": f"{PACKAGE}1"}
    assert gate.bodies("CreateEndpointConfig")[0]["ProductionVariants"][0]["InferenceAmiVersion"].endswith("4-1")

    gate.answer("DeleteModelPackage", lambda body: {})
    code, out, err = deploy("delete", made.name, "--yes")
    assert code == 0, err
    assert "removed\tmodel package image-classifier/1" in out
    assert gate.bodies("DeleteModelPackage") == [{"ModelPackageName": f"{PACKAGE}1"}]


def test_the_groups_name_means_its_newest_approved_version(
    gate: Gate, deploy: Deploy, project: Path, archive: Path, model: Path
) -> None:
    registry(gate)
    gate.invoke = golden_answers(model)
    assert deploy("register", str(archive), "--status", "Approved")[0] == 0
    assert deploy("register", str(archive), "--status", "Approved")[0] == 0
    assert len(gate.bodies("CreateModelPackageGroup")) == 1  # it was there
    tokens = {body["ClientToken"] for body in gate.bodies("CreateModelPackage")}
    assert len(tokens) == 2
    listed = {"ModelPackageArn": f"{PACKAGE}2", "CreationTime": 1_700_000_000, "ModelPackageStatus": "Completed"}
    gate.answer("ListModelPackages", lambda body: {"ModelPackageSummaryList": [listed]})
    code, _, err = deploy("serve", "image-classifier", "--dry-run")
    assert code == 0, err
    (asked,) = gate.bodies("ListModelPackages")
    assert (asked["ModelApprovalStatus"], asked["SortOrder"]) == ("Approved", "Descending")
    assert gate.bodies("DescribeModelPackage")[-1] == {"ModelPackageName": f"{PACKAGE}2"}
    gate.answer("ListModelPackages", lambda body: {"ModelPackageSummaryList": []})
    code, _, err = deploy("serve", "image-classifier", "--dry-run")
    assert (code, "no version of image-classifier is approved" in err) == (2, True)


def test_a_version_is_served_on_the_processors_that_its_image_is_for(
    gate: Gate, deploy: Deploy, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry(gate)
    assert deploy("register", str(archive), "--status", "Approved")[0] == 0
    asked = gate.bodies("CreateModelPackage")[-1]
    facts = {**asked["CustomerMetadataProperties"], "processor": "arm64", "cuda_major": "0"}
    version(gate, asked, CustomerMetadataProperties=facts)
    for instance, code in (("ml.c7i.xlarge", 2), ("ml.c8g.xlarge", 0)):
        monkeypatch.setenv("CLASSIFIER_SAGEMAKER_SERVE_INSTANCE", instance)
        ended, _, err = deploy("serve", f"{PACKAGE}1", "--dry-run")
        assert ended == code, err
        assert ("is for arm64 processors, ml.c7i.xlarge has others" in err) == bool(code)


def test_a_version_of_others_is_refused_in_a_sentence(gate: Gate, deploy: Deploy, archive: Path) -> None:
    registry(gate)
    assert deploy("register", str(archive), "--status", "Approved")[0] == 0
    for changed in ({"CustomerMetadataProperties": {}}, {"InferenceSpecification": {"Containers": []}}):
        version(gate, gate.bodies("CreateModelPackage")[-1], **changed)
        gate._test_reply = lambda *_: None  # type: ignore[method-assign]  # a reply that others' requests lead to
        code, _, err = deploy("serve", f"{PACKAGE}1", "--yes")
        assert (code, "was not made by `deploy.py register`" in err) == (2, True), err
    gate.fail("DescribeModelPackage", Fault("ValidationException", "ModelPackage image-classifier/9 does not exist."))
    code, _, err = deploy("serve", "image-classifier/9", "--yes")
    assert code == 1
    assert "Traceback" not in err


def test_register_shows_its_requests_and_sends_none(gate: Gate, deploy: Deploy, project: Path, archive: Path) -> None:
    code, out, err = deploy("register", str(archive), "--dry-run")
    assert code == 0, err
    assert [each["operation"] for each in json.loads(out)] == ["create_model_package_group", "create_model_package"]
    assert {each["request"]["ModelPackageGroupName"] for each in json.loads(out)} == {"image-classifier"}
    assert not (project / "runs").exists()
    assert not gate.bodies("CreateModelPackage")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "local", "register"), "models are registered with SageMaker"),
        (("register", "x", "--approve", "image-classifier/1"), "judges a version that is there"),
        (("register", "--approve", "nothing"), "nothing is no version of a model"),
        (("register", "--status", "Perhaps"), "Perhaps"),
    ],
)
def test_register_says_what_it_is_for(deploy: Deploy, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = deploy(*arguments)
    assert code == 2
    assert message in err


def test_quality_is_the_tests_and_without_a_test_the_validations() -> None:
    from image_classifier.sagemaker.registry_requests import quality

    numbers = {"test:accuracy": 0.9, "validation:accuracy": 0.8, "test:loss": None, "test:macro_f1": float("nan")}
    assert quality(numbers)["multiclass_classification_metrics"] == {
        "accuracy": {"value": 0.9, "standard_deviation": "NaN"}
    }
    found = quality({"validation:accuracy": 0.8})
    assert (found["measured_on"], list(found["multiclass_classification_metrics"])) == ("validation", ["accuracy"])
