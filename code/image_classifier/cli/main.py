"""One run of the command line: whatever a command ends with becomes an exit code and, when it failed, two lines."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Sequence

import click

from image_classifier.cli.commands import Call
from image_classifier.cli.remote_commands import app
from image_classifier.contract.errors import EXIT_FAILURE, EXIT_USAGE, ClassifierError, PlatformError, describe
from image_classifier.contract.installation import explain_missing, program

EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 1 failed, 2 wrong usage, 130 or 143 stopped, 141 when who read
    what it printed has left."""
    _open_closed_streams()
    _print_any_name()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        _let_go_of_broken_pipes()
        return EXIT_BROKEN_PIPE
    return code


def _run(arguments: Sequence[str] | None) -> int:  # noqa: PLR0911  # one for each way to end
    call, printing = Call(), (sys.stdout, sys.stderr)
    try:
        code = app.main(args=arguments, prog_name=program(), standalone_mode=False, obj=call)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit:
        if (sys.stdout, sys.stderr) == printing:
            raise
        sys.stdout, sys.stderr = printing  # click's way to take a broken pipe: it puts others there, and ends with 1
        raise BrokenPipeError from None
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return EXIT_USAGE
    except click.UsageError as error:
        return _fail(ClassifierError(error.format_message().rstrip("."), _usage_hint(error)), call, EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail(ClassifierError("interrupted"), call, EXIT_INTERRUPTED)
    except BrokenPipeError:
        raise
    except ClassifierError as error:
        return _fail(error, call, error.exit_code)
    except ModuleNotFoundError as error:
        return _fail(explain_missing(error.name) or _defect(error), call, EXIT_FAILURE)
    except OSError as error:
        return _fail(PlatformError(describe(error)), call, EXIT_FAILURE)
    except Exception as error:
        return _fail(_defect(error), call, EXIT_FAILURE)


def _defect(error: Exception) -> ClassifierError:
    hint = f"this is a defect of {program()}: report it with the output of --debug"
    return ClassifierError(describe(error), hint)


def _let_go_of_broken_pipes() -> None:
    """What is still in a buffer for a reader who has left goes nowhere: Python would complain of it at its exit."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            (sys.stdout, sys.stderr)[number - 1].flush()
            continue
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _open_closed_streams() -> None:
    """Gives what was closed by who started us (`>&-`) a place to go: nowhere. Else the next file that is opened would
    be in its place, and jobs would print into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
        setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def _print_any_name() -> None:
    """Lets file names and labels be printed whose characters the terminal's encoding lacks: as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fail(error: ClassifierError, call: Call, code: int) -> int:
    from image_classifier.cli import render

    if call.debug:
        traceback.print_exc()
    render.error(error)
    return code


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else program()
    if isinstance(error, click.NoSuchOption) and error.option_name in {"--config", "--target", "--runs-dir", "--debug"}:
        return f"{error.option_name} stands before the command: {program()} {error.option_name} ..."
    return f"see {path} --help"
