"""What AWS says when it refuses or fails, as sentences."""

from __future__ import annotations

import pytest

from image_classifier.sagemaker.failures import describe_call, describe_reason


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        ("ExpiredToken", "", "expired"),
        ("TokenRetrievalError", "", "expired"),
        ("NoSuchBucket", "", "missing"),
        ("PermanentRedirect", "", "region"),
        ("ResourceInUse", "busy", "taken"),
        ("ValidationException", "Could not find endpoint", "missing"),
        ("ValidationException", "1 validation error detected", "ValidationException"),
        ("EndpointConnectionError", "", "network"),
        ("503", "", "network"),
        ("SlowDown", "", "throttled"),
        ("ResourceLimitExceeded", "no numbers here", "quota"),
        ("RepositoryNotFoundException", "The repository with name 'x' does not exist in the registry", "image"),
    ],
)
def test_errors_have_their_line_in_the_table(code: str, message: str, expected: str) -> None:
    error = describe_call(code, message, "do it")
    assert error.code == expected
    assert error.hint


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("CapacityError: Unable to provision requested ML compute capacity", "no instance of that type to spare"),
        ("ClientError: Data download failed:PermanentRedirect (301)", "could not read its data"),
        ("ClientError: CannotPullContainerError: not found", "cannot be pulled"),
        ("AlgorithmError: the memory ran out\nhint: lower batch_size, exit code: 1", "the memory ran out"),
        ("", "no reason was given"),
    ],
)
def test_failure_reasons_become_sentences(reason: str, sentence: str) -> None:
    assert sentence in describe_reason(reason).message
