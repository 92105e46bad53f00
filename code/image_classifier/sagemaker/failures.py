"""What AWS says when something goes wrong, as one sentence and a hint.

Two tables: the errors of API calls, by code and message, and the failure reasons of jobs and endpoints, by text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from image_classifier.contract.errors import ClassifierError, JobError, PlatformError
from image_classifier.contract.outputs import parse_failure

NETWORK = "network"  # `AwsError.code` of a call that got no answer
THROTTLED = "throttled"
EXPIRED = "expired"
TAKEN = "taken"
ROLE = "role"
MISSING = "missing"
DENIED = "denied"
QUOTA = "quota"
TRANSIENT = frozenset({NETWORK, THROTTLED})  # worth waiting for
POLICY = "docs/iam-deployer-policy.json"
_MISSING_HINT = "it may have been deleted; `deploy.py status` lists the runs, `deploy.py doctor` checks bucket and role"


class AwsError(PlatformError):
    """An API call failed. `code` is one of this module's words, or the service's own code."""

    def __init__(self, message: str, hint: str = "", *, code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class KnownFailure:
    """One line of a table.

    Args:
        code: what the error is called here.
        codes: the service's codes, a regular expression for the whole code.
        text: what the message must hold, a regular expression; its groups fill the sentence.
        sentence: `{message}`, `{action}` and the groups of `text` are filled in.
    """

    code: str
    codes: str = ".*"
    text: str = ""
    sentence: str
    hint: str


CALLS: tuple[KnownFailure, ...] = (
    KnownFailure(
        code=QUOTA,
        codes="ResourceLimitExceeded|LimitExceededException",
        text=r"limit '(?P<quota>[^']+)' is (?P<limit>\d+)",
        sentence="the account's quota '{quota}' is {limit}",
        hint="ask for more under Service Quotas (for GPU instances it is often 0 in a new account), or choose another "
        "instance type; `deploy.py doctor` lists the quotas",
    ),
    KnownFailure(
        code=QUOTA,
        codes="ResourceLimitExceeded|LimitExceededException",
        sentence="a quota of the account is used up: {message}",
        hint="ask for more under Service Quotas, or choose another instance type",
    ),
    KnownFailure(
        code=EXPIRED,
        codes="ExpiredToken(Exception)?|RequestExpired|TokenRefreshRequired|UnauthorizedSSOToken.*|SSOTokenLoad.*"
        "|TokenRetrieval.*|CredentialRetrieval.*|LoginRefresh.*",
        sentence="the AWS credentials have expired",
        hint="sign in again (aws sso login, or new keys); what runs on AWS goes on, `deploy.py status` picks it up",
    ),
    KnownFailure(
        code="credentials",
        codes="NoCredentialsError|PartialCredentialsError",
        sentence="there are no AWS credentials",
        hint="sign in (aws configure, aws sso login) or set AWS_PROFILE; `deploy.py doctor` checks them",
    ),
    KnownFailure(
        code="credentials",
        codes="UnrecognizedClientException|InvalidClientTokenId|InvalidAccessKeyId|SignatureDoesNotMatch"
        "|InvalidSignatureException|AuthFailure|IncompleteSignature",
        sentence="AWS does not accept the credentials",
        hint="check the keys and the clock of this machine; `deploy.py doctor` shows who you are",
    ),
    KnownFailure(
        code="profile",
        codes="ProfileNotFound",
        sentence="{message}",
        hint="name one of `aws configure list-profiles` as profile under [sagemaker], or leave it at auto",
    ),
    KnownFailure(
        code="region",
        codes="NoRegionError|InvalidRegionError",
        sentence="no region is set",
        hint="set region under [sagemaker], or AWS_REGION",
    ),
    KnownFailure(
        code="region",
        codes="PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraintException|301",
        sentence="the bucket is in another region than the jobs",
        hint="set region under [sagemaker] to the bucket's, or bucket to one of the region's",
    ),
    KnownFailure(
        code=ROLE,
        text=r"(?i)assume (the )?(provided )?(execution )?role|role .*(is not valid|trust|assum)",
        codes="ValidationException|ValidationError|AccessDeniedException",
        sentence="SageMaker may not use the role yet: {message}",
        hint="its trust policy must name sagemaker.amazonaws.com; a new role takes a minute; `deploy.py doctor` checks",
    ),
    KnownFailure(
        code=DENIED,
        codes="AccessDenied(Exception)?|UnauthorizedOperation|NotAuthorized|Forbidden|403",
        sentence="not allowed to {action}: {message}",
        hint=f"the policy a user of deploy.py needs is {POLICY}; `deploy.py doctor` finds what is missing",
    ),
    KnownFailure(
        code="image",
        codes="ImageNotFoundException|RepositoryNotFoundException|ValidationException",
        text=r"(?i)(?<![-/])(image(?!-)|repositor).*(not (be )?(exist|found|find)|doesn't exist|no such|cannot find)",
        sentence="the image is not in ECR: {message}",
        hint="push it to the region of the job: `make build push`; `deploy.py doctor` checks",
    ),
    KnownFailure(
        code=TAKEN,
        codes="ResourceInUse|ConflictException|BucketAlreadyExists|ValidationException",
        text=r"(?i)already exist|already in use|cannot create already|with name .* exists|requested bucket name",
        sentence="the name is taken: {message}",
        hint="choose another name (--name, or endpoint and bucket under [sagemaker])",
    ),
    KnownFailure(
        code=TAKEN,
        codes="ResourceInUse",
        sentence="it is in use: {message}",
        hint="wait until it has settled, or choose another name",
    ),
    KnownFailure(
        code=MISSING,
        codes="ResourceNotFound(Exception)?|NoSuchBucket|NoSuchKey|NoSuchEntity(Exception)?|404|NotFound|ObjectNotFoundException",
        sentence="there is no such thing: {message}",
        hint=_MISSING_HINT,
    ),
    KnownFailure(
        code=MISSING,
        codes="ValidationException|ValidationError",  # what SageMaker calls half of everything
        text=r"(?i)could not find|not found|does not exist|no such",
        sentence="there is no such thing: {message}",
        hint=_MISSING_HINT,
    ),
    KnownFailure(
        code=THROTTLED,
        codes="Throttl.*|TooManyRequests(Exception)?|RequestLimitExceeded|SlowDown|ProvisionedThroughputExceeded.*",
        sentence="AWS answers too many requests of this account and gave up after several tries to {action}",
        hint="wait a minute and try again",
    ),
    KnownFailure(
        code=NETWORK,
        codes="EndpointConnectionError|ConnectTimeoutError|ReadTimeoutError|ConnectionClosedError|ConnectionError"
        "|ProxyConnectionError|HTTPClientError|SSLError|ResponseStreamingError|IncompleteReadError|ResponseParserError"
        "|InternalFailure|InternalServerError|InternalError|InternalDependencyException|ServiceUnavailable|50\\d",
        sentence="AWS cannot be reached to {action}: {message}",
        hint="check the network and the region; what runs on AWS goes on, `deploy.py status` picks it up",
    ),
    KnownFailure(code="", sentence="cannot {action}: {message}", hint="`deploy.py doctor` checks the account's set-up"),
)

REASONS: tuple[KnownFailure, ...] = (
    KnownFailure(
        code="capacity",
        text=r"(?i)CapacityError|insufficient ?(instance ?)?capacity|unable to provision requested ML compute",
        sentence="AWS has no instance of that type to spare right now",
        hint="try again later, another instance type or region, or spot = false",
    ),
    KnownFailure(
        code="image",
        text=r"(?i)CannotPull|(image|repository).*(not exist|not found|doesn't exist)|pull.*image",
        sentence="the image cannot be pulled: {message}",
        hint="push it to the region of the job (`make build push`), and let the role read it (docs/iam-policy.json)",
    ),
    KnownFailure(
        code="data",
        text=r"(?i)No S3 objects found|data download failed|AccessDenied.*s3|NoSuchBucket",
        sentence="the job could not read its data: {message}",
        hint="the role needs docs/iam-policy.json on the bucket; `deploy.py doctor` checks",
    ),
    KnownFailure(
        code="time",
        text=r"(?i)MaxRuntimeExceeded|MaxWaitTimeExceeded|exceeded its (maximum|max)",
        sentence="the job reached its time limit",
        hint="raise max_run_s or max_wait_s under [sagemaker]; go on from its checkpoint: deploy.py train --resume RUN",
    ),
    KnownFailure(
        code="health",
        text=r"(?i)did not pass the ping health check|health check",
        sentence="the container never answered its health check: {message}",
        hint="its log says why; on GPU instances check that cuda_major is the image's: the driver is chosen by it",
    ),
    KnownFailure(
        code="internal",
        text=r"(?i)InternalServerError|internal error",
        sentence="AWS had an internal error",
        hint="try again; a training goes on from its checkpoint: deploy.py train --resume RUN",
    ),
    KnownFailure(
        code="algorithm",
        text=r"(?s)AlgorithmError: (?P<cause>.+?)(, exit code: \d+)?$",
        sentence="{cause}",
        hint="",
    ),
    KnownFailure(code="", sentence="{message}", hint=""),
)


def describe_call(code: str, message: str, action: str) -> AwsError:
    """The error of a failed API call.

    Args:
        code: the service's error code, or the name of botocore's exception.
        action: what was tried, as in "cannot ...": `create the training job`.
    """
    message = " ".join(message.split()).rstrip(".")
    for known in CALLS:
        match = re.search(known.text, message)
        if match and re.fullmatch(known.codes, code):
            values = {"message": message, "action": action} | match.groupdict()
            return AwsError(known.sentence.format(**values), known.hint, code=known.code or code)
    raise AssertionError("the last line takes everything")


def describe_reason(reason: str) -> JobError:
    """The error of a job or endpoint that failed for `reason` (FailureReason, up to 1,024 characters)."""
    reason = reason.strip() or "no reason was given"
    for known in REASONS:
        if match := re.search(known.text, reason):
            values = {"message": " ".join(reason.split())} | match.groupdict()
            failure = parse_failure(known.sentence.format(**values))  # AWS shows what our failure file holds
            return JobError(failure.message, failure.hint or known.hint.strip())
    raise AssertionError("the last line takes everything")


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turns what botocore raises in the block into an AwsError about `action`."""
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, ParamValidationError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except ClassifierError:
        raise
    except ClientError as error:
        details = error.response.get("Error", {})
        raise describe_call(str(details.get("Code", "")), str(details.get("Message", error)), action) from error
    except ParamValidationError as error:
        raise AwsError(f"cannot {action}: {' '.join(str(error).split())}", "this is a fault of the program") from error
    except HTTPClientError as error:  # its subclasses are too many to list
        raise describe_call("HTTPClientError", str(error), action) from error
    except (BotoCoreError, ResponseParserError) as error:  # the latter: a proxy's page instead of AWS's answer
        raise describe_call(type(error).__name__, str(error), action) from error
