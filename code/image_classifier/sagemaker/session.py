"""Credentials, region and account, and the one way in which an API is called: validated, retried, errors translated."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from image_classifier.contract.errors import ConfigError
from image_classifier.launch.view import SILENT, View
from image_classifier.sagemaker.aws_settings import AUTO, NONE, SageMakerSettings
from image_classifier.sagemaker.failures import translated
from image_classifier.sagemaker.images import Image
from image_classifier.sagemaker.requests import ApiRequest
from image_classifier.sagemaker.validation import validate

MAX_ATTEMPTS = 8  # with botocore's exponential backoff and jitter: about half a minute of throttling
CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 70  # an invocation may take 60 s
MAX_CONNECTIONS = 32
_ROLE = re.compile(r"arn:(?P<partition>aws[a-z-]*):iam::(?P<account>\d{12}):role/(?P<path>.*/)?(?P<name>[^/]+)")


class Session:
    """Signed in to one account and region. Threads may share it. `view` is told what happens there."""

    def __init__(self, settings: SageMakerSettings, view: View = SILENT) -> None:
        """Raises AwsError when the profile is unknown or no region is set."""
        import boto3
        from botocore.config import Config

        with translated("sign in"):
            profile = None if settings.profile == AUTO else settings.profile
            region = os.environ.get("AWS_REGION") or None if settings.region == AUTO else settings.region
            self.boto = boto3.Session(profile_name=profile, region_name=region)
            if not self.boto.region_name:
                from botocore.exceptions import NoRegionError

                raise NoRegionError
        self.settings = settings
        self.view = view
        self.region: str = self.boto.region_name
        retries: dict[str, Any] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:
            retries["total_max_attempts"] = MAX_ATTEMPTS
        self._config = Config(
            retries=retries,  # type: ignore[arg-type]  # a TypedDict there
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            max_pool_connections=MAX_CONNECTIONS,
            user_agent_extra="image-classifier",
        )
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The boto3 client of a service."""
        if service not in self._clients:
            with translated(f"reach {service}"):
                make: Any = self.boto.client
                self._clients[service] = make(service, config=self._config)
        return self._clients[service]

    def call(self, service: str, operation: str, **body: Any) -> Any:
        """Calls an API, validated first.

        Args:
            operation: in boto3's spelling: `create_model`.

        Raises:
            ConfigError: the service would refuse the request.
            AwsError: it could not be carried out.
        """
        client = self.client(service)
        if service != "s3":  # S3's bodies are streams
            validate(service, client.meta.method_to_api_mapping[operation], body)
        with translated(operation.replace("_", " ")):
            return getattr(client, operation)(**body)

    def send(self, request: ApiRequest) -> Any:
        """Sends a request that `requests` built. Raises as `call`."""
        return self.call(request.service, request.operation, **request.body)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """`Account`, `Arn` and `UserId` of the credentials. Raises AwsError when they are not accepted."""
        return self.call("sts", "get_caller_identity")  # type: ignore[no-any-return]  # boto3 is untyped here

    @cached_property
    def account(self) -> str:
        """The account's number: the role's, or where none is set the credentials'."""
        match = _ROLE.fullmatch(self.settings.role)
        return match["account"] if match else self.identity["Account"]

    @property
    def bucket(self) -> str:
        """The bucket of data and models; its name when it is to be made is the one that SageMaker's SDK uses."""
        return f"sagemaker-{self.region}-{self.account}" if self.settings.bucket == AUTO else self.settings.bucket

    @property
    def root(self) -> str:
        """`s3://BUCKET/PREFIX`."""
        return f"s3://{self.bucket}/{self.settings.prefix.strip('/')}"

    @property
    def role_name(self) -> str:
        """The role without its path, as IAM's API wants it. Raises ConfigError when none is set."""
        self.require_role()
        match = _ROLE.fullmatch(self.settings.role)
        if match is None:
            raise ConfigError(f"role is {self.settings.role!r}, not the ARN of a role", "arn:aws:iam::...:role/...")
        return match["name"]

    def require_role(self) -> None:
        """Raises ConfigError when no role is set."""
        if self.settings.role == NONE:
            raise ConfigError(
                "no role is set that jobs could run as",
                "set role under [sagemaker]; docs/sagemaker.md makes one from docs/iam-policy.json",
            )

    def require_region(self, image: Image) -> None:
        """Raises ConfigError when the image is in another region: SageMaker does not pull from there."""
        if image.region != self.region:
            raise ConfigError(
                f"the image is in {image.region}, the jobs run in {self.region}",
                f'push it there (AWS_REGION={self.region} make push), or set region = "{image.region}"',
            )
