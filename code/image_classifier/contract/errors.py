"""Every error this project raises on purpose.

ClassifierError                  a sentence for a person, and a hint what to do
├── ConfigError                  a setting or hyperparameter is unknown or out of range
├── DataError                    the image folders cannot be used
├── WeightsError                 the starting weights cannot be had
├── ArtifactError                model.tar.gz is damaged, foreign or from a newer version
├── JobError                     a job failed; carries the first cause
│   ├── ProcessLost              another process of the same training has ended
│   └── JobStopped               a job was asked to stop and saved its state
│       └── RuleFired            a rule of the debugger stopped it
├── PlatformError                the machine refuses: port in use, disk full, no permission
├── RequestError                 one request to the endpoint is wrong; carries the HTTP status
│   ├── ImageError          400  the bytes are not an image that can be read
│   ├── NoSuchPath          404  the endpoint has nothing there
│   ├── MethodNotAllowed    405  it is asked for in another way
│   ├── NotAcceptable       406  no response type the client accepts
│   ├── RequestTimeout      408  the client did not send its request in time
│   ├── TooLarge            413  the body or the picture exceeds a limit
│   ├── UnsupportedMedia    415  the content type is not an image type
│   ├── ExpectationFailed   417  the client expects what HTTP does not know
│   └── HeadersTooLarge     431  the first line or the headers exceed a limit
└── Unanswered                   the endpoint cannot answer a request, right as it may be; carries the HTTP status
    ├── Overloaded          503  not now: ask again later
    └── AnswerTimeout       504  the model took too long

The command line prints `error: MESSAGE` and `hint: HINT` and exits with `exit_code`; a training job writes the
message into its failure file; the endpoint answers `http_status` with both as JSON.
"""

from __future__ import annotations

from image_classifier.contract.text import as_text

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_RULE_FIRED = 3
EXIT_PLATFORM = 4  # of a job, not of the command line: the machine refused, and the same job may go on another time
EXIT_PROCESS_LOST = 5  # of one of a training's processes: another one has ended, whose exit code says why
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


class ProcessLost(JobError):
    """Another process of the same training has ended, and this one cannot go on without it."""

    exit_code = EXIT_PROCESS_LOST


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


class NoSuchPath(RequestError):
    """The endpoint has nothing under this path."""

    http_status = 404


class MethodNotAllowed(RequestError):
    """What lies under this path is asked for in another way. `allowed` are the methods that it knows."""

    http_status = 405

    def __init__(self, message: str, hint: str = "", *, allowed: str) -> None:
        super().__init__(message, hint)
        self.allowed = allowed


class RequestTimeout(RequestError):
    """The client did not send its whole request in time."""

    http_status = 408


class ExpectationFailed(RequestError):
    """The client expects something of the server that HTTP does not know."""

    http_status = 417


class HeadersTooLarge(RequestError):
    """The request's first line or its headers exceed a limit."""

    http_status = 431


class Unanswered(ClassifierError):
    """The endpoint cannot answer a request, right as it may be."""

    http_status = 500


class Overloaded(Unanswered):
    """The endpoint cannot answer now; asking again later may help."""

    http_status = 503


class AnswerTimeout(Unanswered):
    """The model did not answer in time."""

    http_status = 504


def describe(error: BaseException) -> str:
    """One sentence for any exception: our message, an OSError in plain words, type and first line of any other."""
    if isinstance(error, ClassifierError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return as_text(f"{error.strerror}{where}")
    lines = str(error).strip().splitlines()
    return as_text(f"{type(error).__name__}: {lines[0]}") if lines else type(error).__name__
