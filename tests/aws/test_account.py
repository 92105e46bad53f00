"""What comes before the first job: credentials, `deploy.py doctor`, the policies, and what never loads the SDK."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.aws.conftest import BUCKET, FOREIGN_BUCKET, ROLE, client, set_settings
from tests.aws.gate import Fault, Gate
from tests.aws.policy import allowed, policy

from image_classifier.launch.runs import Status, create_run

Deploy = Callable[..., tuple[int, str, str]]
DEPLOY = Path(__file__).parents[2] / "deploy.py"
QUOTAS = "ServiceQuotasV20190624.ListServiceQuotas"
SIMULATE = "iam:SimulatePrincipalPolicy"


def make_role(service: str = "sagemaker.amazonaws.com") -> None:
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    client("iam").create_role(Path="/service-role/", RoleName="classifier", AssumeRolePolicyDocument=trust)


def make_image(name: str) -> None:
    ecr = client("ecr")
    ecr.create_repository(repositoryName=name)
    media_type = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"schemaVersion": 2, "mediaType": media_type, "config": {"digest": "sha256:" + "0" * 64}, "layers": []}
    ecr.put_image(repositoryName=name, imageTag="1", imageManifest=json.dumps(manifest))


def simulated(gate: Gate, decision: str) -> None:
    """moto has no policy simulator."""
    gate.xml[SIMULATE] = lambda body: (
        '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><SimulatePrincipalPolicyResult>'
        "<IsTruncated>false</IsTruncated><EvaluationResults>"
        + "".join(
            f"<member><EvalActionName>{value}</EvalActionName><EvalDecision>{decision}</EvalDecision></member>"
            for name, value in body.items()
            if name.startswith("ActionNames")
        )
        + "</EvaluationResults></SimulatePrincipalPolicyResult></SimulatePrincipalPolicyResponse>"
    )


def healthy(gate: Gate) -> None:
    make_role()
    make_image("image-classifier-train")
    make_image("image-classifier-serve")
    client("s3").create_bucket(Bucket=BUCKET)
    simulated(gate, "allowed")
    limits = {"ml.g5.xlarge for training job usage": 2.0, "ml.g4dn.xlarge for endpoint usage": 1.0}
    gate.answer(QUOTAS, lambda body: {"Quotas": [{"QuotaName": k, "Value": v} for k, v in limits.items()]})


def states(out: str) -> dict[str, str]:
    """Name -> state of each check."""
    lines = [re.match(r"(\w+) +([^:]+): ", line) for line in out.splitlines()]
    return {match[2]: match[1] for match in lines if match}


def test_doctor_finds_nothing_wrong_in_a_healthy_account(gate: Gate, deploy: Deploy) -> None:
    healthy(gate)
    code, out, err = deploy("doctor")
    assert code == 0, out + err
    assert set(states(out).values()) == {"ok"}
    assert {"credentials", "region", "role", "role's rights", "bucket", "training image", "quota"} <= set(states(out))
    assert "ml.g5.xlarge for training job usage: 2, needed 1" in out


def test_doctor_finds_each_fault_and_what_to_do(gate: Gate, deploy: Deploy, project: Path) -> None:
    make_role(service="ec2.amazonaws.com")
    simulated(gate, "implicitDeny")
    limits = [{"QuotaName": "ml.g5.xlarge for training job usage", "Value": 0.0}]
    gate.answer(QUOTAS, lambda body: {"Quotas": limits})
    text = (project / "deploy.toml").read_text() + f'bucket = "{FOREIGN_BUCKET}"\n'
    (project / "deploy.toml").write_text(text)
    code, out, _ = deploy("doctor", "--json")
    assert code == 1
    found = {check["name"]: check for check in json.loads(out)}
    assert found["role"]["detail"] == "the role does not trust sagemaker.amazonaws.com"
    assert "docs/iam-trust-policy.json" in found["role"]["hint"]
    assert "the role may not s3:GetObject" in found["role's rights"]["detail"]
    assert found["bucket"]["state"] == "failed"
    assert "the image is not in ECR" in found["training image"]["detail"]
    assert "make build push" in found["serving image"]["hint"]
    by_detail = {check["detail"]: check for check in json.loads(out)}
    assert by_detail["ml.g5.xlarge for training job usage: 0, needed 1"]["state"] == "failed"


def test_doctor_says_unknown_where_it_may_not_look(gate: Gate, deploy: Deploy) -> None:
    healthy(gate)
    denied = Fault("AccessDenied", "User is not authorized", 403)
    gate.fail("iam:GetRole", denied)
    gate.fail(SIMULATE, denied)
    gate.fail(QUOTAS, Fault("AccessDeniedException", "no"))
    code, out, _ = deploy("doctor")
    assert code == 0
    assert states(out)["role"] == states(out)["role's rights"] == states(out)["quotas"] == "unknown"


def test_role_without_its_path_is_found_out(gate: Gate, deploy: Deploy, project: Path) -> None:
    healthy(gate)
    text = (project / "deploy.toml").read_text().replace("service-role/", "")
    (project / "deploy.toml").write_text(text)
    code, out, _ = deploy("doctor")
    assert code == 1
    assert f"the role's ARN is {ROLE}" in out


def test_missing_role_and_a_proxys_page_are_understood(gate: Gate, deploy: Deploy) -> None:
    gate.xml[SIMULATE] = lambda body: "<html>please log in to the hotel's network"
    gate.answer(QUOTAS, lambda body: {"Quotas": []})
    code, out, _ = deploy("doctor")
    assert code == 1
    assert f"failed   role: there is no {ROLE}\n         hint: docs/sagemaker.md shows how to make the role" in out
    assert "failed   role's rights: AWS cannot be reached to simulate principal policy" in out
    assert states(out)["quota"] == "unknown"


def test_commands_without_credentials_end_in_one_sentence(
    gate: Gate, deploy: Deploy, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    image = next((project / "data").rglob("*.jpg"))
    for command in (["train", "--yes"], ["predict", str(image)]):
        code, _, err = deploy(*command)
        assert code == 1
        assert "error: there are no AWS credentials" in err
        assert "aws sso login" in err
    code, out, _ = deploy("doctor")
    assert code == 1
    assert "failed   credentials: there are no AWS credentials" in out


def test_unknown_profile_and_missing_region(
    gate: Gate, deploy: Deploy, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    code, _, err = deploy("train", "--dry-run")
    assert code == 1
    assert "error: no region is set" in err
    set_settings(project, profile="nobody")
    code, _, err = deploy("train", "--dry-run")
    assert code == 1
    assert "The config profile (nobody) could not be found" in err


def test_network_that_is_not_there_is_one_sentence(gate: Gate, deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, _, err = deploy("train", "--yes")
    assert code == 1
    assert "error: AWS cannot be reached to head bucket" in err
    assert "check the network" in err


def test_status_without_aws_shows_what_was_last_seen(gate: Gate, deploy: Deploy, project: Path) -> None:
    gate.fail("Logs_20140328.DescribeLogStreams", Fault("ExpiredTokenException", "expired"))
    assert deploy("train", "--yes")[0] == 1
    gate.fail("DescribeTrainingJob", Fault("ExpiredTokenException", "expired"))
    code, out, err = deploy("status")
    assert code == 0
    assert "InProgress" in out
    assert "warning: the AWS credentials have expired; runs on SageMaker are shown as they were last seen" in err


def test_a_run_of_this_machine_is_deleted_without_a_request_to_aws(gate: Gate, deploy: Deploy, project: Path) -> None:
    run = create_run(project / "runs", "train")
    run.end(Status.COMPLETED)
    code, _, err = deploy("delete", run.name, "--yes")
    assert code == 0, err
    assert not run.path.exists()
    assert gate.calls == []


def test_policies_have_every_name_put_in_by_doctor(gate: Gate, project: Path) -> None:
    from image_classifier.cli.settings import load
    from image_classifier.sagemaker.doctor import role_policy
    from image_classifier.sagemaker.session import Session

    text = json.dumps(role_policy(Session(load({}).sagemaker)))
    assert "${" not in text
    assert f"arn:aws:s3:::{BUCKET}/image-classifier/*" in text
    assert not [action for action in allowed("iam-policy.json") if "*" in action]
    assert not [action for action in allowed("iam-deployer-policy.json") if "*" in action]
    assert policy("iam-trust-policy.json")["Statement"][0]["Principal"] == {"Service": "sagemaker.amazonaws.com"}


def test_local_commands_never_load_the_sdk(tmp_path: Path) -> None:
    create_run(tmp_path / "runs", "train")
    code = f"""
import runpy, sys
for command in (["--help"], ["train", "--help"], ["status"], ["config"], ["logs"]):
    sys.argv = ["deploy.py", *command]
    try:
        runpy.run_path({str(DEPLOY)!r}, run_name="__main__")
    except SystemExit as end:
        assert not end.code, end.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert not {"boto3", "botocore", "sagemaker", "torch"} & set(done.stdout.splitlines()[-1].split())
