"""Every error this project raises on purpose.

ClassifierError                  a sentence for a person, and a hint what to do
├── ConfigError                  a setting or hyperparameter is unknown or out of range
├── DataError                    the image folders cannot be used
├── WeightsError                 the starting weights cannot be had
├── ArtifactError                model.tar.gz is damaged, foreign or from a newer version
├── JobError                     a job failed; carries the first cause
│   └── JobStopped               a job was asked to stop and saved its state
│       └── RuleFired            a rule of the debugger stopped it
├── PlatformError                the machine refuses: port in use, disk full, no permission
└── RequestError                 one request to the endpoint is wrong; carries the HTTP status
    ├── ImageError          400  the bytes are not an image that can be read
    ├── NotAcceptable       406  no response type the client accepts
    ├── TooLarge            413  the body or the picture exceeds a limit
    └── UnsupportedMedia    415  the content type is not an image type

The command line prints `error: MESSAGE` and `hint: HINT` and exits with `exit_code`; a training job writes the
message into its failure file; the endpoint answers `http_status` with both as JSON.
"""

from __future__ import annotations

from image_classifier.contract.text import as_text

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_RULE_FIRED = 3
EXIT_STOPPED = 143  # 128 + SIGTERM, what a shell reports for a process ended by SIGTERM


class ClassifierError(Exception):
    """A failure with a cause the user can act on.

    Args:
        message: one sentence, without a trailing full stop, that names the thing at fault.
        hint: what to do about it; may be empty.

    Both are kept as text that every file and answer can hold, whatever bytes the names in them have.
    """

    exit_code = EXIT_FAILURE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(as_text(message))
        self.message = as_text(message)
        self.hint = as_text(hint)


class ConfigError(ClassifierError):
    """A setting or hyperparameter is unknown, of the wrong type or out of range."""

    exit_code = EXIT_USAGE


class DataError(ClassifierError):
    """The image folders cannot be used as they are."""


class WeightsError(ClassifierError):
    """The starting weights cannot be had or do not fit."""


class ArtifactError(ClassifierError):
    """A model artifact is damaged, foreign, or written by a newer version."""


class JobError(ClassifierError):
    """A job failed. The message is its first cause."""


class JobStopped(JobError):
    """A job was asked to stop, saved its state, and can be resumed."""

    exit_code = EXIT_STOPPED


class RuleFired(JobStopped):
    """A rule of the debugger found the job not worth going on with; its state is saved."""

    exit_code = EXIT_RULE_FIRED


class PlatformError(ClassifierError):
    """The machine refuses: a port in use, a full disk, a missing program or permission."""


class RequestError(ClassifierError):
    """One request to the endpoint is wrong; the others are not affected."""

    http_status = 400


class ImageError(RequestError):
    """The bytes are not an image that can be read."""


class NotAcceptable(RequestError):
    """None of the response types the client accepts is offered."""

    http_status = 406


class TooLarge(RequestError):
    """The body, or the picture inside it, exceeds a limit."""

    http_status = 413


class UnsupportedMedia(RequestError):
    """The content type is not an image type."""

    http_status = 415


def describe(error: BaseException) -> str:
    """One sentence for any exception: our message, an OSError in plain words, type and first line of any other."""
    if isinstance(error, ClassifierError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return as_text(f"{error.strerror}{where}")
    lines = str(error).strip().splitlines()
    return as_text(f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__
