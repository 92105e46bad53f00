"""A program under its supervisor: whichever of owner, supervisor and program dies first, nothing is left."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tests.processes import lives

from image_classifier.contract.supervised import Supervised, wait_for_an_end

CODE = Path(__file__).parents[2] / "code"
# It says "saved" when it is stopped; its child is in a session of its own, its grandchild's parent has ended.
PROGRAM = """
import os, signal, subprocess, sys, time
def stop(number, frame):
    os.write(1, f"got {{signal.Signals(number).name}}\\n".encode())  # at once: another signal may come meanwhile
    if {polite}:
        sys.exit(128 + number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep, start_new_session=True)
daemon = "from subprocess import *; print(Popen({{!r}}, start_new_session=True, stdout=DEVNULL).pid)".format(sleep)
orphan = subprocess.check_output([sys.executable, "-c", daemon], text=True)
print("started", os.getpid(), child.pid, orphan, end="", flush=True)
while True:
    time.sleep(1)
"""
POLITE, DEAF = PROGRAM.format(polite=True), PROGRAM.format(polite=False)
OWNER = """
import os, sys, time
from image_classifier.contract.supervised import Supervised, wait_for_an_end
with Supervised.start([sys.executable, "-c", {program!r}], env=os.environ, cwd="/", grace_s={grace_s}, after={after}):
    time.sleep(600)
"""


class Watched:
    """A program's log, and the processes that it names there."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def start(self, program: str, after: list[str] | None = None) -> Supervised:
        env = {**os.environ, "PYTHONPATH": str(CODE)}
        command = [sys.executable, "-c", program]
        with self.log.open("ab") as output:
            return Supervised.start(command, env=env, cwd=self.log.parent, output=output, after=after or [])

    @contextmanager
    def start_owner(self, program: str, grace_s: float, after: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """A process that starts the program and sleeps. It is killed at the end of the block."""
        command = [sys.executable, "-c", OWNER.format(program=program, grace_s=grace_s, after=after)]
        env = {**os.environ, "PYTHONPATH": str(CODE)}
        with self.log.open("ab") as output, subprocess.Popen(command, stdout=output, env=env) as owner:
            try:
                yield owner
            finally:
                owner.kill()

    def processes(self) -> list[psutil.Process]:
        """Program, child, orphan, once they run."""
        wait_until(lambda: self.text.count("\n") > 0)
        found = [psutil.Process(int(word)) for word in self.text.splitlines()[0].split()[1:]]
        assert len(found) == 3
        return found

    @property
    def text(self) -> str:
        return self.log.read_text()


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path / "log")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    wait_until(lambda: not any(map(lives, processes)))


def touch(file: Path) -> list[str]:
    return ["/usr/bin/touch", str(file)]


@pytest.mark.parametrize(
    ("program", "status"),
    [("raise SystemExit(7)", 7), ("pass", 0), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_the_exit_status_is_the_programs(watched: Watched, program: str, status: int) -> None:
    with watched.start(program) as supervised:
        assert supervised.wait() == status
        assert supervised.poll() == status


def test_a_program_that_cannot_be_started_is_a_sentence_and_status_127(tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = tmp_path / "done"
    with log.open("wb") as output:
        started = Supervised.start(["/nowhere/x"], env={}, cwd=tmp_path, output=output, after=touch(done))
    with started:
        assert started.wait() == 127
    assert log.read_text() == "error: cannot start /nowhere/x: No such file or directory\n"
    assert done.exists()


def test_the_program_reads_nothing_and_ignores_and_blocks_no_signal_that_its_owner_does_not(watched: Watched) -> None:
    look = ["/bin/cat", "-", "/proc/self/status"]
    with watched.log.open("wb") as output, Supervised.start(look, env=os.environ, cwd="/", output=output) as supervised:
        assert supervised.wait() == 0
    unsupervised = subprocess.run(look, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    more = [mask & ~owners for mask, owners in zip(masks(watched.text), masks(unsupervised), strict=True)]
    assert more == [0, 0]  # an owner under nohup, or in a script's background, ignores some itself


def masks(status: str) -> list[int]:
    """The signals that a process blocks and ignores, without the C library's own, 32 and 33."""
    found = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigBlk", "SigIgn"))]
    assert len(found) == 2
    return [mask & 0x7FFF_FFFF for mask in found]


def test_a_stop_is_for_the_program_alone_and_the_rest_is_killed_when_it_has_ended(watched: Watched) -> None:
    with watched.start(POLITE) as supervised:
        processes = watched.processes()
        supervised.stop()
        assert supervised.wait() == 143
        assert not any(process.is_running() for process in processes)  # reaped, too
    assert watched.text.endswith("got SIGTERM\n")


def test_any_signal_can_be_sent_and_a_deaf_program_is_killed_with_all_it_started(watched: Watched) -> None:
    with watched.start(DEAF) as supervised:
        processes = watched.processes()
        supervised.send_signal(signal.SIGINT)
        supervised.stop()
        wait_until(lambda: set(watched.text.splitlines()[-2:]) == {"got SIGINT", "got SIGTERM"})  # in either order
        assert supervised.poll() is None
        supervised.kill()
        assert supervised.wait() == 137
        assert not any(process.is_running() for process in processes)
        supervised.kill()  # too late, and nobody minds


def test_signals_to_the_group_do_not_end_the_supervisor(watched: Watched) -> None:
    with watched.start(DEAF) as supervised:
        processes = watched.processes()
        assert os.getpgid(processes[0].pid) == supervised.pid
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.killpg(supervised.pid, number)
            wait_until(lambda number=number: number.name in watched.text)
        assert supervised.poll() is None
        assert os.getsid(supervised.pid) != os.getsid(0)  # Ctrl-C is for the owner


def test_an_orphan_that_ends_is_reaped_while_the_program_runs(watched: Watched) -> None:
    with watched.start(DEAF):
        orphan = watched.processes()[2]
        orphan.kill()
        wait_until(lambda: not orphan.is_running())


def test_a_killed_owner_leaves_nothing(watched: Watched, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with watched.start_owner(POLITE, grace_s=60, after=touch(done)) as owner:
        processes = watched.processes()
        owner.kill()
    wait_until_gone(processes)
    wait_until(done.exists)
    assert watched.text.endswith("got SIGTERM\n")


@pytest.mark.parametrize("grace_s", [0, 0.5])
def test_a_program_that_does_not_stop_when_its_owner_is_killed_is_killed_after_the_grace(
    watched: Watched, tmp_path: Path, grace_s: float
) -> None:
    folder = tmp_path / "scratch"
    (folder / "inner").mkdir(parents=True)
    with watched.start_owner(DEAF, grace_s=grace_s, after=["rm", "-rf", str(folder)]) as owner:
        processes = watched.processes()
        assert folder.exists()
        owner.kill()
    wait_until_gone(processes)
    wait_until(lambda: not folder.exists())


def test_a_killed_program_leaves_nothing(watched: Watched, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with watched.start(DEAF, after=touch(done)) as supervised:
        processes = watched.processes()
        processes[0].kill()
        assert supervised.wait() == 137
        assert not any(process.is_running() for process in processes)
    assert done.exists()


def test_a_killed_supervisor_takes_the_program_along(watched: Watched) -> None:
    with watched.start(DEAF) as supervised:
        program, child, orphan = watched.processes()
        os.kill(supervised.pid, signal.SIGKILL)
        assert supervised.wait() == 137
        wait_until_gone([program, child])
    orphan.kill()  # in another session, and its parent is gone: nobody can know any more whose it was


def test_leaving_the_block_leaves_nothing(watched: Watched) -> None:
    with watched.start(DEAF):
        processes = watched.processes()
    assert not any(process.is_running() for process in processes)


@pytest.mark.parametrize("victim", ["owner", "inner owner", "inner supervisor"])
def test_supervisors_nest(watched: Watched, victim: str) -> None:
    """Test -> supervisor -> owner -> supervisor -> program."""
    with watched.start(OWNER.format(program=DEAF, grace_s=0.5, after=[])) as outer:
        processes = watched.processes()
        (owner,) = psutil.Process(outer.pid).children()
        (inner,) = owner.children()
        if victim == "owner":
            outer.close()
        elif victim == "inner owner":
            owner.kill()
            assert outer.wait() == 137
        else:
            inner.kill()
            wait_until(lambda: inner.status() == psutil.STATUS_ZOMBIE)  # its owner sleeps
            outer.kill()
            assert outer.wait() == 137
        assert not any(process.is_running() for process in [owner, inner, *processes])


def test_the_end_of_any_process_ends_a_wait(watched: Watched) -> None:
    with watched.start("import time; time.sleep(600)") as lasting, watched.start("pass") as short:
        wait_for_an_end([lasting.pid, short.pid], 600)
        assert short.poll() == 0
        wait_for_an_end([lasting.pid, short.pid], 600)  # of one that is known to have ended
        wait_for_an_end([lasting.pid], 0.01)
        assert lasting.poll() is None


def test_where_no_end_can_be_waited_for_the_time_is_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    slept: list[float] = []
    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(time, "sleep", slept.append)
    wait_for_an_end([os.getpid()], 0.25)
    assert slept == [0.25]
