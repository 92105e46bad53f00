"""A wait is seen to go on: twice a second on a terminal of any width, as a line now and then in a pipe."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from image_classifier.cli.live_drawing import QUIET_S, SparseLines, fitted
from image_classifier.contract.config import TrainConfig
from image_classifier.contract.metrics import metric_line
from image_classifier.launch.progress import Counting, ProgressView
from image_classifier.launch.view import Bar, Drawing, Live
from image_classifier.tuning.search_view import SearchView
from image_classifier.tuning.tune_settings import TuneSettings

BAR = Bar(done=2.4, total=10, width=32)
ROW = ["epoch 3/10", BAR, "step 12/40", "loss 0.812", "31.5 images/s", "1 min 2 s, 3 min left"]
STYLES = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")
WAITS = """
import time
from image_classifier.cli.render import Console
from image_classifier.contract.config import TrainConfig
from image_classifier.launch.progress import ProgressView
with Console().live() as live:
    view = ProgressView(live, TrainConfig(epochs=10))
    view.line("16:28:20 device: CPU, 1 thread, bf16")
    view.line("16:28:20 epoch=1/10 step=5/10 loss=1.2345 lr=0.01 images/s=31.5 data_wait=12%")
    time.sleep(2.6)
    print("a result")
"""


class Kept(Live):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.drawn: Drawing = []

    def show(self, text: str) -> None:
        self.lines.append(text)

    def draw(self, drawing: object) -> None:
        assert callable(drawing)
        self.drawn = drawing()


def texts(drawing: Drawing) -> list[str]:
    return ["  ".join(cell for cell in row if isinstance(cell, str)) for row in drawing]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_drawing_is_no_wider_than_the_terminal_and_loses_no_cell(width: int) -> None:
    blocks = fitted([ROW], width)
    cells = [cell for block in blocks for row in block for cell in row]
    assert [cell for cell in cells if isinstance(cell, str)] == [cell for cell in ROW if isinstance(cell, str)]
    for block in blocks:
        for row in block:
            taken = sum(cell.width if isinstance(cell, Bar) else len(cell) for cell in row)
            assert taken + 2 * len(row) <= width or len(row) == 1
    assert (len(blocks) == 1) == (width > 80)


def test_rows_of_one_cell_do_not_widen_the_columns_of_the_others() -> None:
    trial = ["trial 1/8", BAR, "epoch 1/10"]
    assert fitted([trial, trial, ["0 of 8 trials done  12 s, 12 min 40 s left"], []], 60) == [
        [trial, trial],
        [["0 of 8 trials done  12 s, 12 min 40 s left"]],
        [[]],
    ]


def test_in_a_pipe_a_line_comes_only_after_a_long_silence() -> None:
    now, said = [0.0], list[str]()
    lines = SparseLines(said.append, clock=lambda: now[0])
    lines.draw(lambda: [["epoch 1/3", Bar(done=0, total=1, width=9), "", "5 s"]])
    lines.tell()
    now[0] = QUIET_S - 1
    lines.show("epoch 1/3  loss 0.9")
    now[0] = 2 * QUIET_S - 2
    lines.tell()
    assert said == ["epoch 1/3  loss 0.9"]
    now[0] = 2 * QUIET_S
    lines.tell()
    lines.tell()
    assert said == ["epoch 1/3  loss 0.9", "epoch 1/3  5 s"]


@pytest.mark.parametrize("columns", [40, 80])
def test_on_a_terminal_it_moves_although_the_job_says_nothing(columns: int) -> None:
    command = [sys.executable, "-c", WAITS]
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "xterm", "NO_COLOR": "1", "PYTHONPATH": "code"}
    main, side = pty.openpty()
    with subprocess.Popen(
        command, stderr=side, stdout=subprocess.PIPE, stdin=side, env=environment, cwd=Path(__file__).parents[2]
    ) as program:
        os.close(side)
        printed, last = "", time.monotonic() + 60
        while time.monotonic() < last:
            if select.select([main], [], [], 0.2)[0]:
                try:
                    printed += os.read(main, 65536).decode()
                except OSError:  # it has ended
                    break
        os.close(main)
        assert program.stdout is not None
        assert program.stdout.read() == b"a result\n"
    assert program.returncode == 0
    assert "result" not in printed
    shown = STYLES.sub("\n", printed)
    assert "device: CPU, 1 thread, bf16" in printed
    assert {"1 s", "2 s"} <= set(re.findall(r"^\s*.*?\b(\d s)\b", shown, re.MULTILINE))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert max(map(len, lines)) <= columns


def test_a_training_shows_time_from_its_start_and_what_it_does_at_its_end() -> None:
    kept = Kept()
    view = ProgressView(kept, TrainConfig(epochs=2))
    assert "starting" in texts(kept.drawn)[0]
    view.line("16:28:20 device: CPU, 1 thread, bf16")
    view.line("16:28:20 warning: training on the CPU, although this machine has an NVIDIA GPU: ...")
    assert len(kept.lines) == 2
    for epoch in (1, 2):
        view.line(f"16:28:21 {metric_line(epoch, {'train:loss': 0.9})}")
    ProgressView.line(view, "16:28:22 anything")
    assert "finishing" in texts(view._drawing())[0]


def test_a_search_shows_trials_done_and_the_time_that_the_rest_will_take(tmp_path: Path) -> None:
    from image_classifier.launch.progress import JobProgress

    kept = Kept()
    view = SearchView(kept, tmp_path / "log", TuneSettings(trials=4, parallel=2))
    view.draw({})
    assert texts(kept.drawn)[0].startswith("0 of 4 trials done  0 s")
    assert "left" not in texts(kept.drawn)[0]
    now = time.monotonic()
    progress = JobProgress(epochs=2)
    progress.feed("epoch=1/2 step=0/10 loss=1", now - 10)
    progress.feed("epoch=1/2 step=10/10 loss=1", now)
    view.started(1, {"lr": 0.1}, again=False)
    view.draw({1: progress})
    assert re.search(r"0 of 4 trials done  0 s, (19|20|21) s left", texts(kept.drawn)[1])  # 10 s each, two at a time


def test_counting_says_how_many_of_how_many() -> None:
    kept = Kept()
    counting = Counting(kept, "images read")
    assert texts(kept.drawn) == []
    counting.count(0, 10)
    assert texts(counting._drawing()) == ["0 of 10 images read  0 s"]
    counting.count(5, 10)
    assert re.fullmatch(r"5 of 10 images read  0 s, 0 s left", texts(counting._drawing())[0])
