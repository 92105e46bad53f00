"""The profiler's window is a file of Chrome trace events as Perfetto imports them: complete, in order, tied together.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU describes the format.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from image_classifier.contract.outputs import TRACE
from image_classifier.debugging.trace import FIRST_STEP, TraceWindow

STEPS = 3
REQUIRED = {
    "X": {"name", "ts", "dur", "pid", "tid"},
    "M": {"name", "pid", "args"},
    "i": {"name", "ts", "pid", "tid", "s"},
    "s": {"name", "cat", "id", "ts", "pid", "tid"},
    "f": {"name", "cat", "id", "ts", "pid", "tid", "bp"},
}  # phase of an event -> the fields it must have
Event = dict[str, Any]


def trained(folder: Path, *, epochs: int, steps: int) -> None:
    """Trains a small network under a window of STEPS steps."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = TraceWindow(folder, STEPS)
    for epoch in range(epochs):
        window.begin("train", epoch + 1, epoch * steps)
        for _ in range(steps):
            window.mark("data_wait_s")
            images, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            window.end_step(loss, logits, labels)
        window.end_epoch()
    window.close()


def read(folder: Path) -> list[Event]:
    with gzip.open(folder / TRACE, "rt", encoding="utf-8") as file:
        events: list[Event] = json.load(file)["traceEvents"]
    return events


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    folder = tmp_path_factory.mktemp("trace")
    trained(folder, epochs=1, steps=FIRST_STEP + STEPS + 2)
    return read(folder)


def test_every_event_has_the_fields_of_its_phase(events: list[Event]) -> None:
    assert {event["ph"] for event in events} >= {"X", "M", "s", "f"}
    for event in events:
        assert REQUIRED[event["ph"]] <= event.keys(), event
        assert event.get("dur", 0) >= 0, event


def test_slices_of_a_thread_lie_side_by_side_or_inside_each_other(events: list[Event]) -> None:
    threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(event)
    assert max(len(slices) for slices in threads.values()) > 100
    for slices in threads.values():
        open_until: list[float] = []
        for each in sorted(slices, key=lambda event: (event["ts"], -event["dur"])):
            while open_until and each["ts"] >= open_until[-1]:
                open_until.pop()
            end = each["ts"] + each["dur"]
            assert not open_until or end <= open_until[-1] + 0.01, each  # microseconds, printed to a thousandth
            open_until.append(end)


def test_arrows_from_forward_to_backward_have_both_ends(events: list[Event]) -> None:
    starts, ends = ({e["id"]: e for e in events if e["ph"] == phase} for phase in "sf")
    assert starts
    assert starts.keys() == ends.keys()
    for number, start in starts.items():
        assert start["ts"] <= ends[number]["ts"]
        assert (start["cat"], start["name"]) == (ends[number]["cat"], ends[number]["name"])


def test_the_window_holds_as_many_steps_as_were_asked_for(events: list[Event]) -> None:
    assert sum(event["name"] == "aten::conv2d" for event in events) == STEPS
    assert sum(event["name"].startswith("Optimizer.step") for event in events) == STEPS


def test_a_window_ends_with_its_epoch(tmp_path: Path) -> None:
    trained(tmp_path, epochs=2, steps=FIRST_STEP + 1)
    assert sum(event["name"] == "aten::conv2d" for event in read(tmp_path)) == 1


def test_an_epoch_too_short_for_the_window_leaves_it_to_the_next(tmp_path: Path) -> None:
    trained(tmp_path, epochs=3, steps=FIRST_STEP - 1)
    assert sum(event["name"] == "aten::conv2d" for event in read(tmp_path)) == STEPS
