"""The IAM policies of docs/, evaluated against the requests that deploy.py makes.

`needs` says what IAM would be asked about a request, as AWS's service authorization reference lists it: actions, the
ARNs they are about, and the context keys that the policies look at. `allows` is IAM's answer for a policy of Allow
statements.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from image_classifier.sagemaker.requests import ID_TAG, RUN_TAG

DOCS = Path(__file__).parents[2] / "docs"
DEPLOYER = "iam-deployer-policy.json"
ACCOUNT, REGION, ROLE = "123456789012", "us-east-1", "service-role/classifier"
NAMES = {
    "PARTITION": "aws",
    "REGION": REGION,
    "ACCOUNT": ACCOUNT,
    "ROLE": ROLE,
    "BUCKET": f"sagemaker-{REGION}-{ACCOUNT}",
    "PREFIX": "image-classifier",
    "ENDPOINT": "image-classifier",
}
SERVICES = {
    "AnyScaleFrontendService": "application-autoscaling",
    "Logs_20140328": "logs",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "ServiceQuotasV20190624": "servicequotas",
    "GraniteServiceVersion20100801": "cloudwatch",
    "monitoring": "cloudwatch",
}
OUR_TAGS = {RUN_TAG: "train-20260102-030405", ID_TAG: "0123456789abcdef"}
# Member of a request that names a resource -> the resource's type in an ARN, the first that is there.
RESOURCES = {
    "TrainingJobName": "training-job",
    "HyperParameterTuningJobName": "hyper-parameter-tuning-job",
    "TransformJobName": "transform-job",
    "EndpointName": "endpoint",
    "EndpointConfigName": "endpoint-config",
    "ModelName": "model",
    "ModelPackageGroupName": "model-package-group",
}
# What harms others when it reaches their things.
CHANGES = re.compile(r"[a-z0-9-]+:(Create|Delete|Stop|Update|Put|Add|Invoke|Register|Deregister|Tag|Pass|Abort)")


@dataclass(frozen=True, kw_only=True)
class Need:
    """One question to IAM. `context` are (key, value) pairs: tags of the request and of the resource, and so on."""

    action: str
    resource: str
    context: frozenset[tuple[str, str]] = frozenset()


def policy(name: str) -> Any:
    return json.loads((DOCS / name).read_text())


def filled(name: str = DEPLOYER) -> Any:
    """A policy as the guide's `envsubst` makes it."""
    return json.loads(Template((DOCS / name).read_text()).substitute(NAMES))


def allowed(name: str) -> set[str]:
    """Every action of a policy."""
    return {action for statement in policy(name)["Statement"] for action in statement["Action"]}


def allows(document: Any, need: Need) -> bool:
    """Whether one of the statements allows it: all are Allow, so that is IAM's rule."""
    context = dict(need.context)
    return any(
        need.action in statement["Action"]
        and any(fnmatch.fnmatchcase(need.resource, pattern) for pattern in statement["Resource"])
        and all(
            _holds(operator, key, wanted, context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, wanted in keys.items()
        )
        for statement in document["Statement"]
    )


def _holds(operator: str, key: str, wanted: str | list[str], context: Mapping[str, str]) -> bool:
    values = [wanted] if isinstance(wanted, str) else wanted
    if operator == "Null":
        return (key not in context) is (values == ["true"])
    if operator == "StringLikeIfExists":
        return key not in context or any(fnmatch.fnmatchcase(context[key], value) for value in values)
    if operator == "StringEquals":
        return key in context and context[key] in values
    raise AssertionError(f"the tests do not know IAM's {operator}")


def needs(operation: str, body: Mapping[str, Any]) -> Iterator[Need]:
    """What IAM is asked about a request that the gate recorded, when all it names is the tool's own."""
    if operation.startswith("s3:"):
        yield from _s3_needs(operation.removeprefix("s3:"), body)
        return
    if operation in {"invocations", "async-invocations"}:
        action = "InvokeEndpoint" if operation == "invocations" else "InvokeEndpointAsync"
        yield _need(f"sagemaker:{action}", _arn("sagemaker", f"endpoint/{body['EndpointName']}"), resource=OUR_TAGS)
        return
    service, _, name = operation.replace(":", ".").rpartition(".")
    service = SERVICES.get(service, service) or "sagemaker"
    action = f"{service}:{name}"
    if service == "sagemaker":
        yield from _sagemaker_needs(name, body)
    elif service == "application-autoscaling":
        keys = {
            "application-autoscaling:service-namespace": body["ServiceNamespace"],
            "application-autoscaling:scalable-dimension": body["ScalableDimension"],
        }
        target, sent = _arn(service, "scalable-target/0a1b"), body.get("Tags", {})
        yield _need(action, target, request=sent, resource={} if sent else OUR_TAGS, more=keys)
        if sent:
            yield _need(f"{service}:TagResource", target, request=sent)
    elif service == "cloudwatch":
        alarms = [str(value) for key, value in body.items() if key.startswith("AlarmName")]
        for alarm in [one for each in alarms for one in re.findall(r"[\w-]+", each)] or ["x"]:
            yield _need(action, _arn(service, f"alarm:{alarm}"))
            if "Tags" in body or any(key.startswith("Tags.") for key in body):
                yield _need(f"{service}:TagResource", _arn(service, f"alarm:{alarm}"))
    elif service == "logs":
        stream = f":log-stream:{body['logStreamName']}" if "logStreamName" in body else ":log-stream:"
        yield _need(action, _arn(service, f"log-group:{body['logGroupName']}{stream}"))
    elif service == "iam":
        yield _need(action, f"arn:aws:iam::{ACCOUNT}:role/{ROLE}")
    elif service == "ecr":
        yield _need(action, _arn(service, f"repository/{body['repositoryName']}"))
    else:
        yield _need(action, "*")


def of_others(need: Need) -> Iterator[Need]:
    """The same done to what another team made: its name, and, under a name like ours, its tags."""
    foreign = need.resource
    for ours in ("train-", "tune-", "batch-", "serve-", "image-classifier", ROLE):
        foreign = re.sub(rf"(?<=[/:]){re.escape(ours)}", "theirs-", foreign)
    if foreign != need.resource:
        yield dataclasses.replace(need, resource=foreign)
    kept = frozenset((key, value) for key, value in need.context if not key.startswith("aws:ResourceTag/"))
    if kept != need.context:
        yield dataclasses.replace(need, context=kept | {("aws:ResourceTag/team", "theirs")})


def refused(document: Any, asked: Iterable[Need]) -> list[Need]:
    """What a user with the policy could not do."""
    return sorted((need for need in asked if not allows(document, need)), key=str)


def _sagemaker_needs(name: str, body: Mapping[str, Any]) -> Iterator[Need]:
    sent = {tag["Key"]: tag["Value"] for tag in body.get("Tags", [])}
    if "ResourceArn" in body:
        yield _need(f"sagemaker:{name}", str(body["ResourceArn"]), request=sent, resource=OUR_TAGS)
        return
    arns = [_arn("sagemaker", f"{kind}/{body[member]}") for member, kind in RESOURCES.items() if member in body]
    if name.endswith("ModelPackage"):  # a version, named by its ARN; it has its group's tags
        version = body.get("ModelPackageName") or body.get("ModelPackageArn")
        yield _need(f"sagemaker:{name}", str(version or arns[0]))
        return
    if not name.startswith(("Create", "UpdateEndpoint")):
        arns = arns[:1]
    # What is being made has no tags yet, and what it is made of is only read.
    tagged = {} if name.startswith("Create") else OUR_TAGS
    for arn in arns:
        yield _need(f"sagemaker:{name}", arn, request=sent, resource=tagged)
    if sent:
        yield _need("sagemaker:AddTags", arns[0], request=sent, more={"sagemaker:TaggingAction": name})
    if any("RoleArn" in part for part in (body, body.get("TrainingJobDefinition", {}))) or "ExecutionRoleArn" in body:
        passed = {"iam:PassedToService": "sagemaker.amazonaws.com"}
        yield _need("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{ROLE}", more=passed)


def _s3_needs(method: str, body: Mapping[str, Any]) -> Iterator[Need]:
    path, _, query = str(body["path"]).partition("?")
    asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    bucket, _, key = urllib.parse.unquote(path).strip("/").partition("/")
    arn = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    if not key and method == "POST":  # DeleteObjects
        for deleted in body["keys"]:
            yield _need("s3:DeleteObject", f"{arn}/{deleted}")
        return
    if not key:
        action = {"GET": "ListBucket", "HEAD": "ListBucket", "PUT": "CreateBucket"}[method]
        if "publicAccessBlock" in asked:
            action = "PutBucketPublicAccessBlock"
        yield _need(f"s3:{action}", arn, more={"s3:prefix": asked["prefix"]} if "prefix" in asked else {})
        return
    if method == "copy":
        yield _need("s3:GetObject", f"arn:aws:s3:::{urllib.parse.unquote(str(body['source'])).lstrip('/')}")
    action = {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}.get(method, "PutObject")
    yield _need("s3:AbortMultipartUpload" if "uploadId" in asked and method == "DELETE" else f"s3:{action}", arn)


def _need(
    action: str,
    arn: str,
    *,
    request: Mapping[str, str] | None = None,
    resource: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
) -> Need:
    context = {f"aws:RequestTag/{key}": value for key, value in (request or {}).items()}
    context |= {f"aws:ResourceTag/{key}": value for key, value in (resource or {}).items()}
    return Need(action=action, resource=arn, context=frozenset({**context, **(more or {})}.items()))


def _arn(service: str, rest: str) -> str:
    return f"arn:aws:{service}:{REGION}:{ACCOUNT}:{rest}"
