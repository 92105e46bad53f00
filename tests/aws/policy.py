"""The IAM policies of docs/, and whether they allow what deploy.py does."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
SERVICES = {
    "AnyScaleFrontendService": "application-autoscaling",
    "Logs_20140328": "logs",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "ServiceQuotasV20190624": "servicequotas",
    "GraniteServiceVersion20100801": "cloudwatch",
    "monitoring": "cloudwatch",
}
ACTIONS = {
    "s3:PUT": {"s3:PutObject", "s3:CreateBucket", "s3:PutBucketPublicAccessBlock"},
    "s3:copy": {"s3:PutObject", "s3:GetObject"},
    "s3:GET": {"s3:GetObject", "s3:ListBucket"},
    "s3:HEAD": {"s3:GetObject", "s3:ListBucket"},
    "s3:POST": {"s3:DeleteObject"},  # DeleteObjects; multipart uploads are PutObject
    "s3:DELETE": {"s3:DeleteObject"},
    "invocations": {"sagemaker:InvokeEndpoint"},
    "async-invocations": {"sagemaker:InvokeEndpointAsync"},
}


def policy(name: str) -> Any:
    return json.loads((DOCS / name).read_text())


def allowed(name: str) -> set[str]:
    """Every action of a policy."""
    return {action for statement in policy(name)["Statement"] for action in statement["Action"]}


def needed(operations: Iterable[str]) -> set[str]:
    """The IAM actions of operations, as the gate names them."""
    found: set[str] = set()
    for operation in operations:
        if operation in ACTIONS:
            found |= ACTIONS[operation]
            continue
        service, _, name = operation.replace(":", ".").rpartition(".")
        found.add(f"{SERVICES.get(service, service) or 'sagemaker'}:{name}")
    return found


def forbidden(operations: Iterable[str], name: str = "iam-deployer-policy.json") -> set[str]:
    """What a user with the policy could not do."""
    patterns = [re.compile(fnmatch.translate(action)) for action in allowed(name)]
    return {action for action in needed(operations) if not any(pattern.match(action) for pattern in patterns)}
