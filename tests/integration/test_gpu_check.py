"""The check for a GPU machine, tried on the CPU: every part, what it writes, and what becomes of one that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmarks.gpu import kit
from benchmarks.gpu.carry import PACKAGES, pinned
from benchmarks.gpu.gpu_check import BUDGET_S, NO_TIME, OK, OUT_OF_TIME, PARTS, SKIPPED, end_group
from tests.processes import lives, runs_program

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PROGRAM = ROOT / "benchmarks" / "gpu" / "gpu_check.py"
MEASURED = {  # what each part must have taken down when it ended well
    "0": {"machine", "photos"},
    "a": {"synthetic_images_per_s", "full", "head"},
    "b": {
        "synchronisations_a_step",
        "synchronisations_by_place",
        "launching_thread",
        "step_ms",
        "overhead_share",
        "small_batch",
    },
    "c": {"starved feed and memory leak", "healthy"},
    "d": {"engines"},
    "e": {"forward_images_per_s", "decode_ms", "default_workers", "answers"},
    "f": {"copy", "removed", "train_called", "serve_called"},
    "g": {"killed_after_epochs", "resumed", "losses"},
    "h": {"samples_of_the_gpu", "a_look_at_the_machine_ms", "events", "longest_ms"},
    "i": set(),  # needs a GPU
    "j": {"images_per_s", "seconds_in_all"},
}


def check(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--fake", "--folder", str(folder), *flags]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder.parent)


def result(folder: Path) -> dict[str, dict[str, Any]]:
    """The parts of gpu.json by name."""
    return {part["part"]: part for part in json.loads((folder / "gpu.json").read_text())["parts"]}


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole trial."""
    folder = tmp_path_factory.mktemp("gpu") / "check"
    done = check(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_part_ends_well_and_writes_all_that_it_measures(tried: Path) -> None:
    parts = result(tried)
    assert {name: (part["status"], part["why"]) for name, part in parts.items()} == {
        part.name: (SKIPPED, "our kernels need a GPU") if part.name == "i" else (OK, "") for part in PARTS
    }
    assert {name: MEASURED[name] - part["measured"].keys() for name, part in parts.items()} == {
        name: set() for name in MEASURED
    }


def test_a_trial_judges_no_claim_and_says_in_its_table_that_it_proves_nothing(tried: Path) -> None:
    claims = [claim for part in result(tried).values() for claim in part["claims"]]
    assert len(claims) >= 12
    assert {claim["holds"] for claim in claims} == {None}
    table = (tried / "gpu.md").read_text()
    assert "No number here says anything of a GPU" in table
    assert all(claim["claim"] in table for claim in claims)


def test_what_a_trial_leaves_out_is_named_with_the_reason(tried: Path) -> None:
    skipped = [each for part in result(tried).values() for each in part["skipped"]]
    assert {"what": "torch cuda", "why": "--fake has no GPU"} in skipped
    assert all(each["what"] and each["why"] for each in skipped)


def test_the_planted_leak_and_the_slow_feed_ran_in_the_training_that_was_judged(tried: Path) -> None:
    found = result(tried)["c"]["measured"]["starved feed and memory leak"]
    assert set(found) == {"fired", "verdicts", "gpu"}
    assert "Dataloader" in found["verdicts"]


def test_stubs_stand_in_a_copy_and_the_installed_libraries_stay_whole(tried: Path) -> None:
    found = result(tried)["f"]["measured"]
    assert found["train_called"] == found["serve_called"] == []
    assert len(found["copy"]["stubs"]) == 6
    site = next(Path(folder) for folder in sys.path if (Path(folder) / "torch" / "lib").is_dir())
    assert all((site / place).stat().st_size > 1_000_000 for place in found["copy"]["stubs"])
    assert not (tried / "stubbed").exists()


def test_a_later_run_keeps_what_ended_well_and_runs_the_rest(tried: Path) -> None:
    before = result(tried)
    damaged = before["h"] | {"status": "failed"}
    (tried / "h.json").write_text(json.dumps(damaged))
    done = check(tried)
    assert done.returncode == 0, done.stdout
    kept = [line for line in done.stdout.splitlines() if line.endswith("kept from an earlier run")]
    assert len(kept) == len(PARTS) - 1
    assert result(tried)["a"] == before["a"]
    assert result(tried)["h"]["status"] == OK


def test_a_part_that_takes_too_long_is_ended_and_named(tmp_path: Path) -> None:
    done = check(tmp_path / "check", "--only", "0", "--limit", "0=0.2")
    assert done.returncode == 1
    assert "0  machine and photos: out of time" in done.stdout
    part = result(tmp_path / "check")["0"]
    assert (part["status"], part["limit_s"]) == (OUT_OF_TIME, 0.2)


def test_a_check_that_is_told_to_end_ends_its_part(tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--fake", "--folder", str(tmp_path / "check"), "--only", "0"]
    process = subprocess.Popen(command, cwd=tmp_path)
    program = psutil.Process(process.pid)
    while not (parts := [each for each in program.children() if runs_program(each, "--part")]):
        time.sleep(0.02)
    process.terminate()
    assert process.wait() == 143
    psutil.wait_procs(parts, timeout=30)
    assert not any(part.is_running() for part in parts)


def test_a_part_is_not_begun_when_the_time_of_all_is_used_up(tmp_path: Path) -> None:
    done = check(tmp_path / "check", "--only", "0,a", "--budget", "0")
    assert done.returncode == 1
    assert {result(tmp_path / "check")[name]["status"] for name in ("0", "a")} == {NO_TIME}


def test_a_part_that_hangs_and_ignores_being_asked_is_ended_with_what_it_started(tmp_path: Path) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 600) & echo $! > child; while true; do sleep 1; done"
    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
        pass
    child = int((tmp_path / "child").read_text())
    end_group(process)
    assert process.wait() < 0
    assert not lives(child)


def test_the_limits_of_the_parts_fit_into_the_time_of_all() -> None:
    assert sum(part.limit_s for part in PARTS) <= BUDGET_S


def test_what_was_carried_is_on_the_path_of_a_part_and_of_what_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    monkeypatch.setattr(kit, "CARRIED", tmp_path)
    assert str(packages) not in kit.search_path(fake=True)  # smdebug is installed here
    monkeypatch.syspath_prepend(packages)  # as in a part, whose path the check has set
    assert kit.search_path(fake=True)[0] == str(packages)


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_carried_is_pinned_with_its_hash_and_for_any_machine(name: str) -> None:
    lines = pinned(name)
    assert lines.startswith(f"{name}==")
    assert "--hash=sha256:" in lines
    assert ";" not in lines


def test_the_document_has_every_part_with_its_limit() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").splitlines()]
    said = {row[1].strip(): row[3].strip() for row in rows if len(row) == 5}
    assert {part.name: said.get(part.name) for part in PARTS} == {part.name: f"{part.limit_s:.0f}" for part in PARTS}


def test_without_a_gpu_the_check_says_so_and_writes_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        str(PROGRAM),
        "--folder",
        str(tmp_path / "check"),
        "--results",
        str(tmp_path / "results"),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch finds no GPU here\nhint: --fake")
    assert list(tmp_path.iterdir()) == []


def test_documents_say_not_yet_run_on_a_gpu_until_there_is_a_result() -> None:
    said = "not yet run on a GPU"
    has_result = (RESULTS / "gpu.json").exists()
    if has_result:
        assert json.loads((RESULTS / "gpu.json").read_text())["fake"] is False
    for name in ("README.md", "docs/gpu.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert (said in text) is not has_result, name
