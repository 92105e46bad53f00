"""Reading a log that grows, over a network that fails."""

from __future__ import annotations

from typing import Any

import pytest

from image_classifier.sagemaker.failures import NETWORK, AwsError
from image_classifier.sagemaker.logs import TRAINING_GROUP, LogTail


class Streams:
    """CloudWatch with two streams of two pages each; `broken` calls fail once."""

    def __init__(self, broken: set[int]) -> None:
        self.calls = 0
        self._broken = broken

    def call(self, _service: str, operation: str, **request: Any) -> dict[str, Any]:
        self.calls += 1
        if self.calls in self._broken:
            raise AwsError("the network is gone", code=NETWORK)
        if operation == "describe_log_streams":
            return {"logStreams": [{"logStreamName": f"job/algo-{host}-1"} for host in (1, 2)]}
        page = int(request.get("nextToken", 0))
        events = [{"message": f"line {page}"}] if page < 2 else []
        return {"events": events, "nextForwardToken": str(min(page + 1, 2))}


EVERY_LINE = [f"algo-{host} line {page}" for host in (1, 2) for page in (0, 1)]


@pytest.mark.parametrize("broken", [1, 2, 3, 4, 5, 6, 7])
def test_no_line_is_lost_or_told_twice_when_a_call_fails(broken: int) -> None:
    tail = LogTail(Streams({broken}), TRAINING_GROUP, "job/")  # type: ignore[arg-type]
    with pytest.raises(AwsError):
        tail.lines()
    assert tail.lines() == EVERY_LINE
    assert tail.lines() == []
