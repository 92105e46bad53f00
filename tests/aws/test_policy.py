"""What a user with docs/iam-deployer-policy.json may not do, and that IAM would take the policy.

That all which deploy.py does is allowed, and nothing of it to other teams' things, is asked at the end of the session,
when every test has had its requests recorded (conftest.py).
"""

from __future__ import annotations

import json
import re

import pytest
from tests.aws.policy import ACCOUNT, OUR_TAGS, REGION, Need, allows, filled

SAGEMAKER = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:"
OURS = frozenset((f"aws:ResourceTag/{key}", value) for key, value in OUR_TAGS.items())
SENT = frozenset((f"aws:RequestTag/{key}", value) for key, value in OUR_TAGS.items())
MADE = SENT | {("sagemaker:TaggingAction", "CreateEndpoint")}
PASSED = frozenset({("iam:PassedToService", "sagemaker.amazonaws.com")})
SCALING = frozenset(
    {
        ("application-autoscaling:service-namespace", "sagemaker"),
        ("application-autoscaling:scalable-dimension", "sagemaker:variant:DesiredInstanceCount"),
    }
)
TARGET = f"arn:aws:application-autoscaling:{REGION}:{ACCOUNT}:scalable-target/0a1b"
MANAGED_POLICY_CHARACTERS = 6_144  # IAM's quota, white space not counted


def may(action: str, resource: str, context: frozenset[tuple[str, str]] = frozenset()) -> bool:
    return allows(filled(), Need(action=action, resource=resource, context=context))


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("DeleteEndpoint", "endpoint/image-classifier"),
        ("UpdateEndpoint", "endpoint/image-classifier"),
        ("InvokeEndpoint", "endpoint/image-classifier"),
        ("AddTags", "endpoint/image-classifier"),
        ("DeleteEndpointConfig", "endpoint-config/serve-20260102-030405"),
        ("DeleteModel", "model/serve-20260102-030405"),
        ("DeleteModel", "model/batch-20260102-030405"),
        ("StopTrainingJob", "training-job/train-20260102-030405"),
        ("StopHyperParameterTuningJob", "hyper-parameter-tuning-job/tune-20260102-030405"),
        ("StopTransformJob", "transform-job/batch-20260102-030405"),
    ],
)
def test_only_what_has_our_name_and_our_tag_is_changed(action: str, resource: str) -> None:
    theirs = frozenset({("aws:ResourceTag/team", "theirs")})
    assert may(f"sagemaker:{action}", SAGEMAKER + resource, OURS)
    assert not may(f"sagemaker:{action}", SAGEMAKER + resource)
    assert not may(f"sagemaker:{action}", SAGEMAKER + resource, theirs)
    assert not may(f"sagemaker:{action}", SAGEMAKER + resource.partition("/")[0] + "/fraud-detector", OURS)


def test_our_tag_cannot_be_put_on_what_others_made() -> None:
    assert may("sagemaker:AddTags", f"{SAGEMAKER}endpoint/image-classifier", MADE)  # while it is being made
    for name in ("fraud-detector", "image-classifier"):
        assert not may("sagemaker:AddTags", f"{SAGEMAKER}endpoint/{name}", SENT)


def test_nothing_is_made_without_the_tag_by_which_it_is_found_again() -> None:
    for resource in ("training-job/train-1", "endpoint/image-classifier", "model/serve-1"):
        action = {"training-job": "CreateTrainingJob", "endpoint": "CreateEndpoint", "model": "CreateModel"}
        named = f"sagemaker:{action[resource.partition('/')[0]]}"
        assert may(named, SAGEMAKER + resource, SENT)
        assert not may(named, SAGEMAKER + resource)


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", PASSED),
        ("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/service-role/classifier", frozenset()),
        ("s3:GetObject", f"arn:aws:s3:::sagemaker-{REGION}-{ACCOUNT}/fraud/data.csv", frozenset()),
        ("s3:DeleteObject", f"arn:aws:s3:::sagemaker-{REGION}-{ACCOUNT}/image-classifier-2/data.csv", frozenset()),
        ("s3:DeleteObject", "arn:aws:s3:::payroll/image-classifier/x", frozenset()),
        ("s3:ListBucket", f"arn:aws:s3:::sagemaker-{REGION}-{ACCOUNT}", frozenset({("s3:prefix", "fraud/")})),
        ("cloudwatch:DeleteAlarms", f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:fraud-5xx", frozenset()),
        ("cloudwatch:DeleteAlarms", f"arn:aws:cloudwatch:{REGION}:{ACCOUNT}:alarm:image-classifier-2-5xx", frozenset()),
        ("application-autoscaling:DeregisterScalableTarget", TARGET, SCALING),
        ("application-autoscaling:RegisterScalableTarget", TARGET, SCALING),
        (
            "application-autoscaling:DeregisterScalableTarget",
            TARGET,
            OURS | {("application-autoscaling:service-namespace", "dynamodb")},
        ),
        (
            "logs:GetLogEvents",
            f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:/aws/sagemaker/Endpoints/fraud:log-stream:x",
            frozenset(),
        ),
        ("iam:GetRole", f"arn:aws:iam::{ACCOUNT}:role/admin", frozenset()),
    ],
)
def test_what_belongs_to_others_is_refused(action: str, resource: str, context: frozenset[tuple[str, str]]) -> None:
    assert not may(action, resource, context)


def test_iam_takes_the_policy() -> None:
    assert len(re.sub(r"\s", "", json.dumps(filled()))) <= MANAGED_POLICY_CHARACTERS
