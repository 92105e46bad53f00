"""Several processes and hosts in the report: who holds the others up, and how busy each host was."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report_folders import LAST_WAITS_S, STEPS_PER_EPOCH, make_job

from image_classifier.contract.outputs import STEPS, SYSTEM_FOLDER
from image_classifier.debugging.schema import of_rank
from image_classifier.report import gather, render

EPOCHS = 2


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of three processes on three hosts, the last of which waits longer for its data and is less busy."""
    return make_job(tmp_path_factory.mktemp("three") / "train", epochs=EPOCHS, test_per_class=2, processes=3)


def test_the_process_that_holds_the_others_up_is_named_with_the_reason(three: Path) -> None:
    facts = gather(three)
    found = facts["processes"]
    assert [(row["rank"], row["steps"]) for row in found["rows"]] == [(i, EPOCHS * STEPS_PER_EPOCH) for i in range(3)]
    assert found["slowest"]["rank"] == 2
    assert found["slowest"]["behind_s"] == pytest.approx(LAST_WAITS_S, rel=0.25)
    waits = [row["phases"]["sync_s"] for row in found["rows"]]
    assert waits[0] == waits[1] == pytest.approx(LAST_WAITS_S)
    assert waits[2] < 0.01
    page = render(facts)
    assert "Process 2 holds the others up: " in page
    assert "most of it in “waiting for data”" in page
    assert page.count("Where a step of process ") == 3


def test_equal_processes_are_not_accused(tmp_path: Path) -> None:
    job = make_job(tmp_path / "train", epochs=EPOCHS, test_per_class=2, processes=3)
    (job / "output" / "data" / of_rank(STEPS.name, 2)).unlink()
    facts = gather(job)
    assert len(facts["processes"]["rows"]) == 2
    assert facts["processes"]["slowest"] is None
    assert "No process holds the others up" in render(facts)


def test_every_host_has_its_own_utilization(three: Path) -> None:
    facts = gather(three)
    hosts = facts["system"]["hosts"]
    assert [host["host"] for host in hosts] == ["algo-1", "algo-2", "algo-3"]
    busy = [host["mean"]["GPU"] for host in hosts]
    assert busy[1] == pytest.approx(0.75 * busy[0], rel=0.1)
    assert busy[2] == pytest.approx(0.5 * busy[0], rel=0.1)
    assert all(len(host["series"]["GPU"]) == len(facts["system"]["seconds"]) for host in hosts)
    assert "3 hosts" in render(facts)


def test_hosts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    job = make_job(tmp_path / "train", epochs=EPOCHS, test_per_class=2, processes=2)
    place = next((job / "output" / SYSTEM_FOLDER).iterdir())
    text = (place / "29833333.algo-2.json").read_text()
    (place / "29833333.algo-10.json").write_text(text.replace('"algo-2"', '"algo-10"'))
    assert [host["host"] for host in gather(job)["system"]["hosts"]] == ["algo-1", "algo-2", "algo-10"]


def test_one_process_on_one_host_says_nothing_of_others(tmp_path: Path) -> None:
    facts = gather(make_job(tmp_path / "train", epochs=EPOCHS, test_per_class=2))
    assert facts["processes"] is None
    assert facts["system"]["hosts"] == []
    page = render(facts)
    assert "holds the others up" not in page
    assert "Waiting for other processes" not in page


def test_a_damaged_file_of_another_process_is_named_as_missing(tmp_path: Path) -> None:
    job = make_job(tmp_path / "train", epochs=EPOCHS, test_per_class=2, processes=2)
    (job / "output" / "data" / of_rank(STEPS.name, 1)).write_text('{"step": "x"}\n')
    facts = gather(job)
    assert facts["processes"] is None
    assert "steps of the other processes: damaged" in facts["missing"]
