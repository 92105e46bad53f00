"""The doctor command: everything a first job needs, tested one by one without making anything."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import Template
from typing import Any, Literal

from image_classifier.contract.errors import ClassifierError
from image_classifier.contract.installation import shipped
from image_classifier.sagemaker.aws_settings import AUTO, SageMakerSettings
from image_classifier.sagemaker.failures import DENIED, MISSING, AwsError
from image_classifier.sagemaker.images import find_image
from image_classifier.sagemaker.session import Session

ROLE_POLICY = shipped("docs/iam-policy.json")
SERVICE = "sagemaker.amazonaws.com"
ROLE_HINT = "docs/sagemaker.md shows how to make the role from docs/iam-policy.json and docs/iam-trust-policy.json"
QUOTA_HINT = "ask for more: Service Quotas, Amazon SageMaker"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was tested. `unknown`: AWS does not let us look, which need not be a fault."""

    name: str
    state: Literal["ok", "unknown", "failed"]
    detail: str
    hint: str = ""


def examine(settings: SageMakerSettings) -> Iterator[Check]:
    """Tests credentials first: without them there is nothing else to ask."""
    try:
        session = Session(settings)
        identity = session.identity
    except ClassifierError as error:
        yield Check(name="credentials", state="failed", detail=error.message, hint=error.hint)
        return
    yield Check(name="credentials", state="ok", detail=f"account {identity['Account']} as {identity['Arn']}")
    yield Check(name="region", state="ok", detail=session.region)
    checks: list[tuple[str, Callable[[Session], Check]]] = [
        ("role", _role),
        ("role's rights", _rights),
        ("bucket", _bucket),
        ("training image", lambda session: _image(session, "train")),
        ("serving image", lambda session: _image(session, "serve")),
    ]
    for name, look in checks:
        yield _guarded(name, look, session)
    try:
        yield from _quotas(session)
    except AwsError as error:
        yield _as_check("quotas", error)


def _guarded(name: str, look: Callable[[Session], Check], session: Session) -> Check:
    try:
        return look(session)
    except ClassifierError as error:
        return _as_check(name, error)


def _as_check(name: str, error: ClassifierError) -> Check:
    denied = isinstance(error, AwsError) and error.code == DENIED
    return Check(name=name, state="unknown" if denied else "failed", detail=error.message, hint=error.hint)


def _role(session: Session) -> Check:
    """Whether the role exists and trusts SageMaker."""
    try:
        role = session.call("iam", "get_role", RoleName=session.role_name)["Role"]
    except AwsError as error:
        if error.code == MISSING:
            return Check(name="role", state="failed", detail=f"there is no {session.settings.role}", hint=ROLE_HINT)
        raise
    if role["Arn"] != session.settings.role:
        return Check(
            name="role",
            state="failed",
            detail=f"the role's ARN is {role['Arn']}, set is {session.settings.role}",
            hint="copy the ARN whole: the path (service-role/) belongs to it",
        )
    trust = role["AssumeRolePolicyDocument"]
    if isinstance(trust, str):
        trust = json.loads(urllib.parse.unquote(trust))
    if not any(_trusts(statement) for statement in _list(trust["Statement"])):
        return Check(name="role", state="failed", detail=f"the role does not trust {SERVICE}", hint=ROLE_HINT)
    return Check(name="role", state="ok", detail=f"{role['Arn']} trusts SageMaker")


def _trusts(statement: Any) -> bool:
    services = _list(statement.get("Principal", {}).get("Service", [])) if statement.get("Effect") == "Allow" else []
    return SERVICE in services and "sts:AssumeRole" in _list(statement.get("Action", []))


def _rights(session: Session) -> Check:
    """Whether the role may do what docs/iam-policy.json lists, by IAM's own simulator."""
    session.require_role()
    denied = []
    for statement in role_policy(session)["Statement"]:
        reply = session.call(
            "iam",
            "simulate_principal_policy",
            PolicySourceArn=session.settings.role,
            ActionNames=statement["Action"],
            ResourceArns=[resource.replace("*", "x") if resource != "*" else "*" for resource in statement["Resource"]],
        )
        denied += [item["EvalActionName"] for item in reply["EvaluationResults"] if item["EvalDecision"] != "allowed"]
    if denied:
        return Check(
            name="role's rights", state="failed", detail=f"the role may not {', '.join(denied)}", hint=ROLE_HINT
        )
    return Check(name="role's rights", state="ok", detail="all that docs/iam-policy.json lists")


def role_policy(session: Session) -> Any:
    """docs/iam-policy.json with this account's names put in."""
    names = {
        "PARTITION": session.settings.role.split(":")[1] if session.settings.role.startswith("arn:") else "aws",
        "REGION": session.region,
        "ACCOUNT": session.account,
        "BUCKET": session.bucket,
        "PREFIX": session.settings.prefix.strip("/"),
    }
    return json.loads(Template(ROLE_POLICY.read_text(encoding="utf-8")).substitute(names))


def _bucket(session: Session) -> Check:
    try:
        reply = session.call("s3", "head_bucket", Bucket=session.bucket, ExpectedBucketOwner=session.account)
    except AwsError as error:
        if error.code == MISSING and session.settings.bucket == AUTO:
            return Check(name="bucket", state="ok", detail=f"{session.bucket} will be made")
        if error.code == DENIED:  # also the answer for a bucket of another account
            detail = f"{session.bucket} belongs to another account, or you may not use it"
            return Check(name="bucket", state="failed", detail=detail, hint=error.hint)
        raise
    region = str(reply.get("BucketRegion", session.region))
    if region != session.region:
        detail = f"{session.bucket} is in {region}, the jobs run in {session.region}"
        return Check(name="bucket", state="failed", detail=detail, hint="data must be in the jobs' region")
    return Check(name="bucket", state="ok", detail=session.bucket)


def _image(session: Session, which: Literal["train", "serve"]) -> Check:
    name = {"train": "training image", "serve": "serving image"}[which]
    aws = session.settings
    serves = which == "serve"
    image = find_image(which, aws, on_gpu=not serves or aws.serves_on_gpu, on_arm=serves and aws.serves_on_arm)
    session.require_region(image)
    identifier = {"imageDigest" if image.is_digest else "imageTag": image.reference}
    session.call(
        "ecr",
        "describe_images",
        registryId=image.account,
        repositoryName=image.repository,
        imageIds=[identifier],
    )
    return Check(name=name, state="ok", detail=image.uri)


def _quotas(session: Session) -> Iterator[Check]:
    """Whether the account may have the instances that the settings name."""
    settings = session.settings
    usage = "spot training job" if settings.spot else "training job"
    wanted = {f"{settings.train_instance} for {usage} usage": settings.train_instances}
    if settings.warm_pool_s:
        wanted[f"{settings.train_instance} for training warm pool usage"] = settings.train_instances
    if settings.variant != "serverless":
        instances = max(settings.serve_instances, settings.max_instances)
        wanted[f"{settings.serve_instance} for endpoint usage"] = instances
    found: dict[str, float] = {}
    options: dict[str, Any] = {"ServiceCode": "sagemaker"}
    while not wanted.keys() <= found.keys():
        page = session.call("service-quotas", "list_service_quotas", **options)
        found |= {quota["QuotaName"]: quota["Value"] for quota in page["Quotas"]}
        if "NextToken" not in page:
            break
        options["NextToken"] = page["NextToken"]
    for name, count in wanted.items():
        limit = found.get(name)
        if limit is None:
            yield Check(name="quota", state="unknown", detail=f"there is no quota named {name!r} in {session.region}")
        else:
            enough = limit >= count
            detail = f"{name}: {limit:g}, needed {count}"
            yield Check(
                name="quota", state="ok" if enough else "failed", detail=detail, hint="" if enough else QUOTA_HINT
            )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
