"""Asking an endpoint on SageMaker: InvokeEndpoint, and for async endpoints a detour through S3."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from image_classifier.contract import wire
from image_classifier.contract.errors import PlatformError
from image_classifier.launch.client import Connection, Said, read_answer, read_refusal, refused
from image_classifier.sagemaker.failures import MISSING, AwsError, translated
from image_classifier.sagemaker.session import Session
from image_classifier.sagemaker.upload import put, split_uri
from image_classifier.vision.artifact import Artifact, check_answer
from image_classifier.vision.manifest import GoldenSample

ASYNC_TIMEOUT_S = 900.0  # an endpoint that was scaled down to nothing first has to start
ASYNC_POLL_S = 1.0


class RemoteClient(Connection):
    """An endpoint on SageMaker. Threads may share it."""

    def __init__(self, session: Session, endpoint: str, *, is_async: bool = False) -> None:
        self.url = f"{session.region}:{endpoint}"
        self._session = session
        self._endpoint = endpoint
        self._is_async = is_async

    def invoke(self, image: bytes, *, content_type: str, top_k: int) -> Said:
        """Asks once. Raises RequestError when the endpoint refused this image, PlatformError for anything else."""
        options = {
            "EndpointName": self._endpoint,
            "ContentType": content_type,
            "Accept": wire.JSON_TYPE,
            "CustomAttributes": f"{wire.TOP_K_ATTRIBUTE}={top_k}",
        }
        body = self._invoke_async(image, options) if self._is_async else self._invoke(image, options)
        try:
            return read_answer(body)
        except ValueError:
            raise PlatformError(f"what answers at {self.url} is not our endpoint") from None

    def _invoke(self, image: bytes, options: dict[str, Any]) -> bytes:
        from botocore.exceptions import ClientError

        client = self._session.client("sagemaker-runtime")
        with translated(f"ask the endpoint {self._endpoint}"):
            try:
                return bytes(client.invoke_endpoint(Body=image, **options)["Body"].read())
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "ModelError":
                    raise
                self._raise_refusal(error.response)
                raise

    def _raise_refusal(self, response: Any) -> None:
        """Raises what our container said; returns when it was not ours that spoke."""
        status = int(response.get("OriginalStatusCode", 500))
        try:
            message, hint = read_refusal(response.get("OriginalMessage", ""))
        except ValueError:
            return
        raise refused(status, message, hint)

    def _invoke_async(self, image: bytes, options: dict[str, Any]) -> bytes:
        """Puts the image into the bucket, and waits for the answer beside it."""
        session = self._session
        key = f"{session.settings.prefix.strip('/')}/questions/{uuid.uuid4().hex}"
        put(session, key, image)
        try:
            where = f"s3://{session.bucket}/{key}"
            reply = session.call("sagemaker-runtime", "invoke_endpoint_async", InputLocation=where, **options)
            return self._wait_for(reply["OutputLocation"], reply.get("FailureLocation", ""))
        finally:
            session.call("s3", "delete_object", Bucket=session.bucket, Key=key)

    def _wait_for(self, good: str, failed: str) -> bytes:
        end = time.monotonic() + ASYNC_TIMEOUT_S
        while time.monotonic() < end:
            if (body := self._fetch(good)) is not None:
                return body
            if failed and (body := self._fetch(failed)) is not None:
                try:
                    message, hint = read_refusal(body)
                except ValueError:
                    raise PlatformError(f"the endpoint {self._endpoint} failed: {body[:200]!r}") from None
                raise refused(400, message, hint)
            time.sleep(ASYNC_POLL_S)
        raise PlatformError(f"the endpoint {self._endpoint} gave no answer within {ASYNC_TIMEOUT_S:.0f} s")

    def _fetch(self, uri: str) -> bytes | None:
        bucket, key = split_uri(uri)
        try:
            return bytes(self._session.call("s3", "get_object", Bucket=bucket, Key=key)["Body"].read())
        except AwsError as error:
            if error.code == MISSING:
                return None
            raise


def check_golden(client: Connection, artifact: Artifact) -> None:
    """Asks for every golden sample of the model. Raises ArtifactError when an answer is not training's."""
    for sample, answer in _answers(client, artifact):
        check_answer(sample, artifact.classes, answer, tolerance=artifact.manifest.widest_tolerance)


def _answers(client: Connection, artifact: Artifact) -> Iterable[tuple[GoldenSample, dict[str, float]]]:
    for sample in artifact.golden:
        said = client.invoke(sample.image, content_type=wire.GENERIC_TYPES[0], top_k=len(artifact.classes))
        yield sample, dict(said.ranking)
