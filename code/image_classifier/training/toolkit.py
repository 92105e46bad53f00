"""How `train` of sagemaker-training runs our script: SAGEMAKER_TRAINING_MODULE names `main` here.

The toolkit's own way neither passes SIGTERM on to the script nor keeps its exit code, and describes a failure by the
command line. Here the script is a direct child that gets the signal, its exit code becomes that of `train`, and its
failure file stays as it wrote it. Preparing code, arguments and SM_* variables is left to the toolkit.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from sagemaker_training import entry_point, environment, logging_config
from sagemaker_training.process import ProcessRunner

from image_classifier.contract.errors import EXIT_FAILURE, EXIT_STOPPED, JobError, JobStopped, NotAvailable
from image_classifier.contract.paths import MlPaths
from image_classifier.training.main import write_failure

_PR_SET_PDEATHSIG = 1  # prctl(2)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Runs the job. Returns when the script succeeded; leaves the process with the script's exit code otherwise."""
    paths = MlPaths.from_environment()
    paths.failure.unlink(missing_ok=True)  # an earlier attempt's: the toolkit would keep it
    _install(_stop_before_start)  # the toolkit may wait for host names, deaf to signals, for 15 minutes
    logging_config.get_logger().setLevel(logging.WARNING)  # it reports every hyperparameter that is not JSON, twice
    env = environment.Environment()
    if len(env.hosts) > 1:  # each would train alone, and all would write the same model
        error = NotAvailable(f"training on {len(env.hosts)} hosts does not exist yet", "ask for one instance")
        write_failure(paths.failure, error)
        _leave(error.exit_code)
    arguments, variables = env.to_cmd_args(), env.to_env_vars()
    runner = ScriptRunner(env.user_entry_point, arguments, variables, processes_per_host=1)
    entry_point.run(env.module_dir, env.user_entry_point, arguments, variables, runner_type=runner)


class ScriptRunner(ProcessRunner):  # type: ignore[misc]  # the toolkit has no types
    """The toolkit's runner of one process, with signals and exit code passed through."""

    def run(self, wait: bool = True, capture_error: bool = False) -> None:
        """Starts the script and waits for it. Does not return when the script failed."""
        command = self._create_command()
        with subprocess.Popen(command, cwd=environment.code_dir, preexec_fn=_die_with_parent) as script:  # noqa: PLW1509
            _install(lambda number, _frame: script.send_signal(number))
            code = script.wait()
        if code < 0:
            _report_killed(-code)
        if code != 0:
            _leave(code if code > 0 else 128 - code)


def _install(handler: object) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _die_with_parent() -> None:
    """In the child before it becomes the script: `train` killed outright must not leave a training behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop_before_start(number: int, _frame: FrameType | None) -> NoReturn:
    stopped = JobStopped(f"stopped by {signal.Signals(number).name} before the training script started")
    write_failure(MlPaths.from_environment().failure, stopped)
    _leave(EXIT_STOPPED)


def _report_killed(number: int) -> None:
    """The script could not write its failure file. Signal 9 is how Linux ends a process when memory runs out."""
    name = signal.Signals(number).name
    hint = "memory ran out, or somebody killed it: lower batch_size or workers" if number == signal.SIGKILL else ""
    write_failure(MlPaths.from_environment().failure, JobError(f"the training script was killed by {name}", hint))


def _leave(code: int) -> NoReturn:
    """Ends the process at once. `sys.exit` would not do: the toolkit turns it into 0, any exception into 1 with a
    traceback in the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or EXIT_FAILURE)
