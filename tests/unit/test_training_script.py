"""The outside of a job: exit codes, failure file, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from image_classifier.contract.errors import ConfigError, DataError, JobError, JobStopped, PlatformError
from image_classifier.training.ending import explain, write_failure
from image_classifier.training.script import main
from image_classifier.training.stop import StopFlag


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("arguments", "code", "failure"),
    [
        (["--lr", "x"], 2, "lr must be a number, not 'x'"),
        (["--learning_rate", "1"], 2, "unknown hyperparameter 'learning_rate'"),
        (["--batch_size", "1"], 2, "batch_size 1 cannot train batch norms"),
        ([], 1, "there is no train channel"),
    ],
)
def test_wrong_input_ends_with_a_sentence_in_the_failure_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], code: int, failure: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path))
    assert main(arguments) == code
    assert (tmp_path / "output" / "failure").read_text().startswith(failure)
    log = capsys.readouterr().out
    assert f"error: {failure}" in log
    assert "Traceback" not in log


def test_failure_file_is_cut_to_what_sagemaker_shows(tmp_path: Path) -> None:
    write_failure(tmp_path / "failure", DataError("ü" * 5000, "hint"))
    assert (tmp_path / "failure").read_text(encoding="utf-8") == "ü" * 1024


def test_a_name_that_is_not_utf_8_is_text_in_every_error(tmp_path: Path) -> None:
    name = os.fsdecode(b"/d/caf\xe9.jpg")
    for error in (DataError(f"cannot list {name}", f"rename {name}"), OSError(13, "Permission denied", name),
                  ValueError(f"no {name}")):  # fmt: skip
        write_failure(tmp_path / "failure", explain(error))
        assert "/d/caf\\xe9.jpg" in (tmp_path / "failure").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (JobStopped("stopped"), JobStopped, "stopped"),
        (OSError(28, "No space left on device", "/x/y"), PlatformError, "No space left on device: /x/y"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), JobError, "the memory ran out"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error"), JobError, "a data loading process"),
        (ZeroDivisionError("division by zero"), JobError, "ZeroDivisionError: division by zero"),
    ],
)
def test_any_exception_becomes_a_sentence(error: Exception, kind: type[Exception], message: str) -> None:
    explained = explain(error)
    assert type(explained) is kind
    assert explained.message.startswith(message)


def test_exit_codes_tell_stopped_usage_and_failure_apart() -> None:
    assert [explain(e).exit_code for e in (JobStopped("s"), ConfigError("c"), JobError("j"))] == [143, 2, 1]


def test_first_stop_signal_is_remembered_and_the_second_changes_nothing() -> None:
    stop = StopFlag()
    stop.install()
    assert not stop
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop
    assert stop.reason == "SIGTERM"


LEAVING = """
import atexit, threading, time
from image_classifier.training.script import leave
class Kept:
    def __del__(self):
        print("taken down")
kept = Kept()
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
print("written")
leave(3)
"""


@pytest.mark.parametrize(("size", "printed"), [("1", ["written", "thread", "at exit"]), ("2", ["written"])])
def test_a_process_leaves_with_its_code_and_all_that_it_wrote_and_takes_nothing_down(
    size: str, printed: list[str]
) -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "code"), "WORLD_SIZE": size}
    done = subprocess.run([sys.executable, "-c", LEAVING], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines() == printed


def test_a_process_whose_output_nobody_reads_leaves_with_its_code() -> None:
    code = "import sys; from image_classifier.training.script import leave; sys.stdout.write('x'); leave(4)"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "code"), "PYTHONUNBUFFERED": ""}
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "wb") as output:
        assert subprocess.run([sys.executable, "-c", code], env=env, stdout=output, check=False).returncode == 4
