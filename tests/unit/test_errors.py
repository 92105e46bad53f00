import errno
import inspect
import os

import pytest

from image_classifier.contract import errors


def test_the_picture_at_the_top_shows_every_class() -> None:
    classes = [
        name for name, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__
    ]
    assert errors.__doc__ is not None
    assert [name for name in classes if name not in errors.__doc__] == []


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.DataError("no images below x", "add some"), "no images below x"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), "No space left on device: a/b"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_any_exception_becomes_one_sentence(error: BaseException, sentence: str) -> None:
    assert errors.describe(error) == sentence
