"""`deploy.py train` on SageMaker, when AWS refuses, loses or ends the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.aws.conftest import ROLE, describe_as, only_run, put_logs, trained
from tests.aws.gate import Body, Cut, Fault, Gate

from image_classifier.launch.runs import Status
from image_classifier.sagemaker import watch

Deploy = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("code", "message", "sentence", "hint"),
    [
        (
            "ResourceLimitExceeded",
            "The account-level service limit 'ml.g5.xlarge for training job usage' is 0 Instances, with current "
            "utilization of 0 Instances and a request delta of 1 Instances. Please use AWS Service Quotas.",
            "the account's quota 'ml.g5.xlarge for training job usage' is 0",
            "Service Quotas",
        ),
        (
            "ExpiredTokenException",
            "The security token included in the request is expired",
            "the AWS credentials have expired",
            "sign in",
        ),
        ("AccessDeniedException", "User x is not authorized to perform", "not allowed to create the training", "iam-"),
        ("UnrecognizedClientException", "The security token is invalid", "AWS does not accept", "clock"),
        ("ThrottlingException", "Rate exceeded", "AWS answers too many requests", "wait a minute"),
        (
            "ValidationException",
            "The image 'x' does not exist in the ECR repository",
            "the image is not in ECR",
            "make build push",
        ),
    ],
)
def test_refused_job_ends_in_one_sentence_and_a_hint(
    gate: Gate, deploy: Deploy, project: Path, code: str, message: str, sentence: str, hint: str
) -> None:
    gate.fail("CreateTrainingJob", Fault(code, message))
    status, out, err = deploy("train", "--yes")
    assert status == 1
    assert f"error: {sentence}" in err
    assert hint in err.partition("hint: ")[2]
    assert "Traceback" not in err
    record = only_run(project).record()
    assert record.status == Status.FAILED
    assert sentence in record.failure
    assert not out


def test_new_role_is_waited_for(gate: Gate, deploy: Deploy, archive: Path) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    unknown = Fault("ValidationException", f"Could not assume role {ROLE}. Please ensure that the role exists")
    gate.fail("CreateTrainingJob", unknown, unknown)
    code, _, err = deploy("train", "--yes")
    assert code == 0, err
    assert err.count("SageMaker may not use the role yet") == 1
    assert len(gate.bodies("CreateTrainingJob")) == 3


def test_role_that_stays_unknown_is_an_error(gate: Gate, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PATIENCE_S", {})
    gate.fail("CreateTrainingJob", Fault("ValidationException", f"Could not assume role {ROLE}."))
    code, _, err = deploy("train", "--yes")
    assert code == 1
    assert "error: SageMaker may not use the role yet" in err
    assert "trust policy" in err


def test_throttling_is_retried(gate: Gate, deploy: Deploy, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    gate.after["CreateTrainingJob"] = trained(archive)
    gate.fail("CreateTrainingJob", *[Fault("ThrottlingException", "Rate exceeded")] * 2)
    code, _, err = deploy("train", "--yes")
    assert code == 0, err
    assert len(gate.bodies("CreateTrainingJob")) == 3


def test_job_whose_creation_was_not_acknowledged_is_ours(gate: Gate, deploy: Deploy, archive: Path) -> None:
    gate.after["CreateTrainingJob"] = trained(archive)
    gate.lost["CreateTrainingJob"] = 1
    code, _, err = deploy("train", "--yes")
    assert code == 0, err
    assert len(gate.bodies("CreateTrainingJob")) == 1
    assert gate.bodies("ListTags")


def test_name_of_somebody_elses_job_is_taken(gate: Gate, deploy: Deploy) -> None:
    gate.fail("CreateTrainingJob", Fault("ResourceInUse", "Training job names must be unique; it already exists"))
    describe_as(gate, TrainingJobStatus="InProgress")
    gate.answer("ListTags", lambda body: {"Tags": []})
    code, _, err = deploy("train", "--yes")
    assert code == 1
    assert "error: the name is taken" in err


def test_lost_network_and_throttling_while_waiting_are_waited_out(gate: Gate, deploy: Deploy, archive: Path) -> None:
    created = trained(archive)

    def then_lose_it(body: Body) -> None:
        created(body)
        slow = Fault("ThrottlingException", "Rate exceeded")
        gate.faults["Logs_20140328.DescribeLogStreams"] += [Cut(), slow, Fault("InternalFailure", "oops", 500)]

    gate.after["CreateTrainingJob"] = then_lose_it
    code, _, err = deploy("train", "--yes")
    assert code == 0, err
    assert "waiting for it to come back" in err
    assert "AWS answers again" in err


def test_token_that_expires_while_waiting_leaves_the_job_alone(gate: Gate, deploy: Deploy, project: Path) -> None:
    gate.fail("Logs_20140328.DescribeLogStreams", Fault("ExpiredTokenException", "expired"))
    code, _, err = deploy("train", "--yes")
    assert code == 1
    assert "error: the AWS credentials have expired" in err
    assert "`deploy.py status` picks it up" in err
    assert only_run(project).record().status == Status.IN_PROGRESS


@pytest.mark.parametrize(
    ("state", "sentence", "hint"),
    [
        (
            {
                "TrainingJobStatus": "Failed",
                "FailureReason": "AlgorithmError: train has only one class, rose\nhint: add another, exit code: 1",
            },
            "error: train has only one class, rose\n",
            "hint: add another",
        ),
        (
            {
                "TrainingJobStatus": "Failed",
                "FailureReason": "CapacityError: Unable to provision requested ML compute capacity. Please retry",
            },
            "error: AWS has no instance of that type to spare right now",
            "another instance type",
        ),
        (
            {"TrainingJobStatus": "Failed", "FailureReason": "InternalServerError: We encountered an internal error."},
            "error: AWS had an internal error",
            "--resume",
        ),
        (
            {"TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxRuntimeExceeded"},
            "error: the job reached its time limit",
            "--resume",
        ),
    ],
)
def test_job_that_fails_says_why_and_shows_its_last_lines(
    gate: Gate, deploy: Deploy, project: Path, state: Body, sentence: str, hint: str
) -> None:
    def logged(body: Body) -> None:
        put_logs("/aws/sagemaker/TrainingJobs", f"{body['TrainingJobName']}/algo-1-1", "one", "the very last line")
        describe_as(gate, **state)

    gate.after["CreateTrainingJob"] = logged
    code, _, err = deploy("train", "--yes")
    assert code == (1 if state["TrainingJobStatus"] == "Failed" else 143)
    assert sentence in err
    assert hint in err
    assert "the very last line" in err
    assert only_run(project).record().status == state["TrainingJobStatus"]
