"""How `train` of sagemaker-training runs a job: SAGEMAKER_TRAINING_MODULE names `main` here.

The toolkit's own way neither passes SIGTERM on to the script nor keeps its exit code, and describes a failure by the
command line. Here the script is a direct child that gets the signal, its exit code becomes that of `train`, and its
failure file stays as it wrote it. There is one script for each GPU of the host, or one; with several in all, each is
told its place as torchrun does, and when one of them is lost all start again from the last checkpoint. Preparing code,
arguments and SM_* variables is left to the toolkit.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NoReturn

from sagemaker_training import environment, logging_config

from image_classifier.contract.errors import (
    EXIT_FAILURE,
    EXIT_PLATFORM,
    EXIT_PROCESS_LOST,
    EXIT_STOPPED,
    ClassifierError,
    JobStopped,
    PlatformError,
)
from image_classifier.contract.outputs import stop_message
from image_classifier.contract.paths import RESTARTS_VARIABLE, MlPaths
from image_classifier.contract.supervised import Supervised, wait_for_an_end
from image_classifier.training.ending import KILLED, PROCESS_LOST, explain, note_end, write_failure
from image_classifier.training.hosts import interface_towards, wait_for_names
from image_classifier.training.program import TrainingProgram, prepare_program

log = logging.getLogger(__name__)
MASTER_PORT = 29_500  # torchrun's default
_THIS_HOST = "127.0.0.1"  # needs no name that leads somewhere
_OWN_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_GRACE_S = 15.0  # for the other processes of a failed training to notice
MAX_RESTARTS = 3  # torchrun's usual number; a process that memory ends again and again is no accident
_POLL_S = 0.1
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Runs the job. Returns when the script succeeded; leaves the process with the script's exit code otherwise."""
    paths = MlPaths.from_environment()
    paths.failure.unlink(missing_ok=True)  # an earlier attempt's: the toolkit would keep it
    _install(_stop_before_start)  # fetching a program may take long
    logging_config.get_logger().setLevel(logging.WARNING)  # it reports every hyperparameter that is not JSON, twice
    try:
        run_job()
    except Exception as caught:
        error = explain(caught)
        if not isinstance(caught, (ClassifierError, OSError)):
            log.error("the job could not be started, in a way nobody foresaw", exc_info=caught)
        log.error("%s", error.message)
        if error.hint:
            log.warning("hint: %s", error.hint)
        write_failure(paths.failure, error)
        _leave(EXIT_PLATFORM if isinstance(error, PlatformError) else error.exit_code)


def run_job() -> None:
    """Prepares the program and runs it to its end. Raises ClassifierError, OSError when it cannot be started."""
    env = environment.Environment()
    program = prepare_program(env)
    environment.write_env_vars(env.to_env_vars())
    several = len(env.hosts) > 1
    if several:
        wait_for_names(env.hosts)
    interface = interface_towards(env.hosts, env.current_host, env.network_interface_name) if several else ""
    per_host = max(1, env.num_gpus) if program.is_per_gpu else 1
    at = places(env.hosts, env.current_host, per_host, interface)
    if not program.is_per_gpu:  # it is told where the others are; what it makes of that is its own
        at = [{name: value for name, value in at[0].items() if name not in _OWN_PLACE}]
    run_program(program, env.to_cmd_args(), at)


def places(hosts: Sequence[str], current: str, per_host: int, interface: str) -> list[dict[str, str]]:
    """The variables that tell each process of this host its place in the training; none for a single process.

    Args:
        interface: the network interface to the other hosts; empty leaves it to gloo and NCCL to find one.
    """
    if len(hosts) * per_host == 1:
        return [{}]
    return [
        {
            "RANK": str(hosts.index(current) * per_host + local),
            "WORLD_SIZE": str(len(hosts) * per_host),
            "LOCAL_RANK": str(local),
            "MASTER_ADDR": hosts[0] if len(hosts) > 1 else _THIS_HOST,
            "LOCAL_WORLD_SIZE": str(per_host),
            "MASTER_PORT": str(MASTER_PORT),
            **(dict.fromkeys(_INTERFACE_VARIABLES, interface) if interface else {}),
        }
        for local in range(per_host)
    ]


def run_program(program: TrainingProgram, arguments: Sequence[str], at: Sequence[Mapping[str, str]]) -> None:
    """Starts a script for each of `at` and waits for them. Does not return when one failed.

    Ours, of several processes on this host or others, is started again where one of them was lost: killed, or gone with
    its host. It goes on from the last checkpoint, and fails when it has been started MAX_RESTARTS times.
    """
    scripts: list[Supervised] = []
    stopped: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)
        for script in scripts:
            script.send_signal(number)

    _install(pass_on)
    failure = MlPaths.from_environment().failure
    for attempt in range(MAX_RESTARTS + 1):
        environment = dict(os.environ)
        if attempt:
            environment[RESTARTS_VARIABLE] = str(attempt)
        scripts.clear()
        with contextlib.ExitStack() as all_end:
            for place in at:
                script = Supervised.start(program.command(arguments), env={**environment, **place}, cwd=program.folder)
                scripts.append(all_end.enter_context(script))
            code = _wait_for_all(scripts)
        what = _lost(code) if program.is_ours and "RANK" in at[0] and not stopped else ""
        if not what or attempt == MAX_RESTARTS:
            break
        log.warning("%s: all start again from the last checkpoint (%d of %d times)", what, attempt + 1, MAX_RESTARTS)
        failure.unlink(missing_ok=True)
    if code != 0:
        note_end(failure, code, program.name)
        _leave(code)


def _lost(code: int) -> str:
    """Which loss of a process ended a training, in words; empty where it was another end.

    Args:
        code: of the script that is the cause on this host.
    """
    if code != EXIT_STOPPED and code - KILLED in signal.valid_signals():
        return f"a process of the training was killed by {signal.Signals(code - KILLED).name}"
    return PROCESS_LOST if code == EXIT_PROCESS_LOST else ""


def _wait_for_all(scripts: Sequence[Supervised]) -> int:
    """The exit code of the script that is the cause, or 0 where none failed.

    Once one has failed the others notice it, or are killed after a while. The cause is the first that failed by itself:
    one that notices may be gone before the one it misses, whose supervisor still ends what that left running.
    """
    codes: dict[int, int] = {}  # by place, in the order of the ends
    killed: set[int] = set()
    deadline = math.inf
    while True:
        for place, script in enumerate(scripts):
            if place not in codes and (code := script.poll()) is not None:
                codes[place] = code
        running = [place for place in range(len(scripts)) if place not in codes]
        failed = [code for place, code in codes.items() if code != 0 and place not in killed]
        if not running:
            return next((code for code in failed if code != EXIT_PROCESS_LOST), failed[0] if failed else 0)
        if failed and deadline == math.inf:
            deadline = time.monotonic() + _GRACE_S
        if time.monotonic() > deadline:
            for place in running:
                scripts[place].kill()
                killed.add(place)
        wait_for_an_end([scripts[place].pid for place in running], _POLL_S)


def _install(handler: object) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)  # type: ignore[arg-type]


def _stop_before_start(number: int, _frame: FrameType | None) -> NoReturn:
    stopped = JobStopped(stop_message(signal.Signals(number).name, "before the training script started"))
    write_failure(MlPaths.from_environment().failure, stopped)
    _leave(EXIT_STOPPED)


def _leave(code: int) -> NoReturn:
    """Ends the process at once. `sys.exit` would not do: the toolkit turns it into 0, any exception into 1 with a
    traceback in the log."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or EXIT_FAILURE)
