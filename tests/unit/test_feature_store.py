"""What frozen bodies computed, kept on the disk: sound or not there, whatever happens while it is written."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.full_disk import no_file_larger_than

from image_classifier.training import feature_store
from image_classifier.training.feature_store import SUFFIX, FeatureStore, row_name

WIDTH = 32
KEY = {"weights": "a"}
fork = multiprocessing.get_context("fork")


def rows(first: int, count: int, seed: int = 0) -> dict[bytes, NDArray[np.float32]]:
    """Rows that are the same wherever they are made."""
    return {
        row_name("centre", str(number)): np.random.default_rng((seed, number)).random(WIDTH, np.float32)
        for number in range(first, first + count)
    }


def store(folder: Path, key: Mapping[str, object] = KEY) -> FeatureStore:
    return FeatureStore(folder, key, WIDTH)


def same(found: Mapping[bytes, NDArray[np.float32]], wanted: Mapping[bytes, NDArray[np.float32]]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_rows_come_back_bit_for_bit_and_only_those_asked_for(tmp_path: Path) -> None:
    store(tmp_path).save(rows(0, 5))
    store(tmp_path).save(rows(5, 5))
    assert same(store(tmp_path).load(rows(0, 10)), rows(0, 10))
    assert same(store(tmp_path).load(rows(3, 4)), rows(3, 4))
    assert store(tmp_path).load(rows(20, 3)) == {}


def test_another_key_never_meets_these_rows(tmp_path: Path) -> None:
    store(tmp_path).save(rows(0, 5))
    assert store(tmp_path, {"weights": "b"}).load(rows(0, 5)) == {}


def test_another_view_or_content_has_another_name() -> None:
    assert len({row_name(view, content) for view in ("centre", "mirror") for content in ("1", "2")}) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[: len(data) // 2],
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        lambda data: b"",
        lambda data: b"\0" * 5000,
        lambda data: b'{"rows": 9999999999999, "width": 32, "sums": ["", ""]}\n',
        lambda data: b'{"rows": -5, "width": 32, "sums": ["", ""]}\n',
        lambda data: b"[1]\n",
        lambda data: data.replace(b'"width": 32', b'"width": 16'),
    ],
)
def test_a_damaged_part_is_as_one_that_was_never_written(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path).save(rows(0, 5))
    store(tmp_path).save(rows(5, 5))
    part = next(iter(tmp_path.glob(f"*/*{SUFFIX}")))
    part.write_bytes(damage(part.read_bytes()))  # type: ignore[operator]
    found = store(tmp_path).load(rows(0, 10))
    assert same(found, rows(0, 5)) or same(found, rows(5, 5))
    assert "damaged and computed again" in caplog.text
    assert not part.exists()


def test_a_folder_or_a_link_to_nowhere_in_the_place_of_a_part_is_passed_over(tmp_path: Path) -> None:
    store(tmp_path).save(rows(0, 5))
    place = next(iter(tmp_path.iterdir()))
    (place / f"folder{SUFFIX}").mkdir()
    (place / f"link{SUFFIX}").symlink_to("nowhere")
    assert same(store(tmp_path).load(rows(0, 5)), rows(0, 5))


def test_two_writers_leave_what_both_wrote(tmp_path: Path) -> None:
    def write(first: int) -> None:
        for start in range(first, first + 100, 10):
            store(tmp_path).save(rows(start, 20))

    writers = [fork.Process(target=write, args=(first,)) for first in (0, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert same(store(tmp_path).load(rows(0, 160)), rows(0, 160))


def test_a_writer_that_is_killed_leaves_whole_parts_or_none(tmp_path: Path) -> None:
    def write() -> None:
        for start in range(0, 100_000, 500):
            store(tmp_path).save(rows(start, 500))

    for wait in (0.02, 0.05, 0.11, 0.17):
        writer = fork.Process(target=write)
        writer.start()
        time.sleep(wait)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        found = store(tmp_path).load(rows(0, 3000))
        assert len(found) % 500 == 0
        assert same(found, {name: row for name, row in rows(0, 3000).items() if name in found})


def test_what_a_killed_writer_left_is_removed_later(tmp_path: Path) -> None:
    store(tmp_path).save(rows(0, 5))
    leftover = next(iter(tmp_path.iterdir())) / f".x{SUFFIX}.1.tmp"
    leftover.write_bytes(b"x")
    store(tmp_path).save(rows(5, 5))
    assert leftover.exists()  # it may be another job's, at work
    os.utime(leftover, (0, 0))
    store(tmp_path).save(rows(10, 5))
    assert not leftover.exists()


def test_a_full_disk_is_said_once_and_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = store(tmp_path)
    kept.save(rows(0, 5))
    with no_file_larger_than(500):
        kept.save(rows(5, 50))
        kept.save(rows(55, 50))
    assert caplog.text.count("features are not kept for the next job") == 1
    assert [path.suffix for path in tmp_path.glob("*/*")] == [SUFFIX]
    assert list(tmp_path.glob("*/.*")) == []
    assert same(store(tmp_path).load(rows(0, 100)), rows(0, 5))


def test_the_last_of_the_disk_is_left_to_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feature_store, "FREE_BYTES", 2**60)
    store(tmp_path).save(rows(0, 5))
    assert "is nearly full" in caplog.text
    assert store(tmp_path).load(rows(0, 5)) == {}


def test_a_folder_that_cannot_be_made_costs_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    kept = store(tmp_path / "file" / "store")
    assert kept.load(rows(0, 5)) == {}
    kept.save(rows(0, 5))
    assert "features are not kept" in caplog.text
    assert FeatureStore(None, KEY, WIDTH).load(rows(0, 5)) == {}


def test_the_store_is_bounded_and_what_was_not_used_for_longest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    size = 20 * (WIDTH * 4 + 32) + 300
    monkeypatch.setattr(feature_store, "MAX_BYTES", 3 * size)
    for number, name in enumerate("abc"):
        store(tmp_path, {"weights": name}).save(rows(0, 20))
        place = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime)
        os.utime(place, (1000 + number, 1000 + number))
    store(tmp_path, {"weights": "a"}).load(rows(0, 20))  # used now
    store(tmp_path, {"weights": "d"}).save(rows(0, 20))
    kept = {name: len(store(tmp_path, {"weights": name}).load(rows(0, 20))) for name in "abcd"}
    assert kept == {"a": 20, "b": 0, "c": 20, "d": 20}
    alone = store(tmp_path, {"weights": "d"})
    for start in range(20, 120, 20):
        alone.save(rows(start, 20))
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 3 * size
    assert caplog.text.count("features are not kept") == 1


def test_only_their_owner_sees_what_pictures_look_like_to_a_network(tmp_path: Path) -> None:
    store(tmp_path / "store").save(rows(0, 5))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "store", *(tmp_path / "store").iterdir())} == {0o700}


def test_notes_come_back_and_damaged_ones_do_not(tmp_path: Path) -> None:
    values = {"relu_output_0": {"abs_max": 1.25}}
    store(tmp_path).save_note(["a", "b"], values)
    assert store(tmp_path).load_note(["a", "b"]) == values
    assert store(tmp_path).load_note(["a"]) is None
    assert store(tmp_path, {"weights": "b"}).load_note(["a", "b"]) is None
    note = next(iter(tmp_path.glob("*/*.json")))
    note.write_text(note.read_text().replace("1.25", "1.26"))
    assert store(tmp_path).load_note(["a", "b"]) is None
