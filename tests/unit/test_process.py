"""Jobs as processes: stopped politely, killed completely, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.processes import lives

from image_classifier.contract.errors import PlatformError
from image_classifier.launch.process import Interrupts, Job, follow, follow_until

POLITE = """
import signal, subprocess, sys, time
def stop(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
time.sleep(600)
"""
DEAF = POLITE.replace('print("saved", flush=True)', "return")
LAUNCHER = """
import sys, time
from pathlib import Path
from image_classifier.launch.process import Job
job = Job.start([sys.executable, "-c", {program!r}], env={{}}, cwd=Path.cwd(), log=Path("log"))
time.sleep(600)
"""


def start(tmp_path: Path, program: str) -> Job:
    return Job.start([sys.executable, "-c", program], env=os.environ, cwd=tmp_path, log=tmp_path / "logs" / "log")


def wait_until_gone(pid: int) -> bool:
    for _ in range(200):
        if not lives(pid):
            return True
        time.sleep(0.05)
    return False


def child_of(job: Job) -> int:
    """The process that the program has started in a session of its own."""
    return children_of(job)[0]


def children_of(job: Job) -> list[int]:
    """The processes that the program names."""
    found: list[int] = []

    def look(line: str) -> bool:
        found.extend(int(word) for word in line.split()[1:] if line.startswith("child"))
        return bool(found)

    assert follow_until(job, look, Interrupts()) is None
    return found


def test_status_and_all_lines_come_through(tmp_path: Path) -> None:
    lines: list[str] = []
    with start(tmp_path, "print('a\\nü'); print('rest', end=''); raise SystemExit(7)") as job:
        assert follow(job, lines.append, Interrupts()) == 7
    assert lines == ["a", "ü", "rest"]
    assert (tmp_path / "logs" / "log").read_text() == "a\nü\nrest"


def test_second_start_reads_only_its_own_lines(tmp_path: Path) -> None:
    for word in ("first", "second"):
        lines: list[str] = []
        with start(tmp_path, f"print('{word}')") as job:
            follow(job, lines.append, Interrupts())
        assert lines == [word]


def test_interrupt_stops_politely_and_takes_the_childs_children(tmp_path: Path) -> None:
    lines: list[str] = []
    with Interrupts() as interrupts, start(tmp_path, POLITE) as job:
        child = child_of(job)
        os.kill(os.getpid(), signal.SIGINT)
        assert follow(job, lines.append, interrupts) == 143
    assert lines == ["saved"]
    assert interrupts.exit_code == 130
    assert wait_until_gone(child)


def test_second_interrupt_kills_what_is_deaf(tmp_path: Path) -> None:
    with Interrupts() as interrupts, start(tmp_path, DEAF) as job:
        child = child_of(job)
        interrupts.count = 2
        assert follow(job, lambda line: None, interrupts) == 137
    assert wait_until_gone(child)


def test_leaving_the_block_leaves_nothing_running(tmp_path: Path) -> None:
    with start(tmp_path, DEAF) as job:
        child = child_of(job)
    assert wait_until_gone(child)
    assert wait_until_gone(job.pid)


def test_killed_launcher_leaves_nothing_running(tmp_path: Path) -> None:
    code = str(Path(__file__).parents[2] / "code")
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER.format(program=POLITE)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": code}
    )
    log = tmp_path / "log"
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.05)
    child = int(log.read_text().split()[1])
    launcher.kill()
    launcher.wait()
    assert wait_until_gone(child)
    assert log.read_text().endswith("saved\n")


def test_killed_program_leaves_nothing_running(tmp_path: Path) -> None:
    program = POLITE.replace('print("child", child.pid', 'print("child", child.pid, os.getpid()').replace(
        "import signal", "import os, signal"
    )
    with start(tmp_path, program) as job:
        child, itself = children_of(job)
        os.kill(itself, signal.SIGKILL)
        assert follow(job, lambda line: None, Interrupts()) == 137
    assert wait_until_gone(child)


def test_killed_supervisor_takes_the_program_along(tmp_path: Path) -> None:
    with start(tmp_path, "import os, time; print('child', os.getpid(), flush=True); time.sleep(600)") as job:
        program = child_of(job)
        os.kill(job.pid, signal.SIGKILL)
        assert follow(job, lambda line: None, Interrupts()) == 137
        assert wait_until_gone(program)


def test_what_comes_after_a_job_is_done_when_it_has_ended_and_when_it_was_killed(tmp_path: Path) -> None:
    for program, kill in (("pass", False), (DEAF, True)):
        done = tmp_path / f"done-{kill}"
        after = [sys.executable, "-c", f"import pathlib; pathlib.Path({str(done)!r}).touch()"]
        command = [sys.executable, "-c", program]
        with Job.start(command, env=os.environ, cwd=tmp_path, log=tmp_path / "log", after=after) as job:
            if kill:
                child_of(job)
                assert not done.exists()
                job.kill()
            assert follow(job, lambda line: None, Interrupts()) == (137 if kill else 0)
        assert done.exists()


def test_program_that_cannot_be_started_is_a_failure_of_the_job(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="cannot start"):
        Job.start(["x"], env={}, cwd=tmp_path / "nowhere", log=tmp_path / "log")
