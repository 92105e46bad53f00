"""The log of a job in CloudWatch, read as it grows."""

from __future__ import annotations

from image_classifier.sagemaker.failures import MISSING, AwsError
from image_classifier.sagemaker.session import Session

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
ENDPOINT_GROUP = "/aws/sagemaker/Endpoints"  # /NAME


class LogTail:
    """The lines of one job's streams (one an instance), each handed out once."""

    def __init__(self, session: Session, group: str, prefix: str) -> None:
        """`prefix` starts the streams' names: `JOB/`."""
        self._session = session
        self._group = group
        self._prefix = prefix
        self._tokens: dict[str, str] = {}
        self._read: list[str] = []  # and not yet handed out

    def lines(self) -> list[str]:
        """What was logged since the last call. Raises AwsError; nothing is lost by it."""
        try:
            streams = self._session.call(
                "logs", "describe_log_streams", logGroupName=self._group, logStreamNamePrefix=self._prefix
            )["logStreams"]
        except AwsError as error:
            if error.code == MISSING:  # nothing has been logged yet
                return []
            raise
        names = sorted(stream["logStreamName"] for stream in streams)
        for name in names:
            self._read_on(name, label=len(names) > 1)
        found, self._read = self._read, []
        return found

    def _read_on(self, stream: str, *, label: bool) -> None:
        while True:
            token = self._tokens.get(stream)
            page = self._session.call(
                "logs",
                "get_log_events",
                logGroupName=self._group,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            lines = [line for event in page["events"] for line in event["message"].splitlines()]
            self._read += [f"{_host(stream)} {line}" if label else line for line in lines]
            self._tokens[stream] = page["nextForwardToken"]
            if not page["events"] or page["nextForwardToken"] == token:
                return


def _host(stream: str) -> str:
    """`algo-2` of `JOB/algo-2-1700000000`."""
    return stream.rpartition("/")[2].rpartition("-")[0]
