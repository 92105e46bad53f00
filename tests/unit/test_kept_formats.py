"""What number formats make of a frozen body: computed once, and the same as what is simulated from nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import draw_norms, jpeg
from tests.head_training import SIZE, make_pictures, split_of

from image_classifier.training import frozen_body
from image_classifier.training.bad_images import BadImages
from image_classifier.training.distributed import Group
from image_classifier.training.features import Extraction
from image_classifier.training.finishing import photos_for_gates
from image_classifier.training.int8_kernels import has_int8_kernels
from image_classifier.training.kept_formats import KeptBody, PhotosChanged, some_of
from image_classifier.training.number_formats import Measured, measure_body, measure_formats
from image_classifier.training.setup import Setup
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.training.views import CENTRE
from image_classifier.vision import network
from image_classifier.vision.fingerprint import file_digests
from image_classifier.vision.folders import ImageFolders, Split
from image_classifier.vision.model import build_model
from image_classifier.vision.network import FEATURES
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.resnet import ResNet

PREPROCESSING = Preprocessing.for_image_size(SIZE)


@pytest.fixture(scope="module")
def model() -> ResNet:
    """Random weights whose blocks do something."""
    torch.manual_seed(0)
    found = build_model(3)
    draw_norms(found)
    return found.eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data")


class Counted:
    """Counts what is computed: the batches of the simulation, and the rows of extractions."""

    def __init__(self) -> None:
        self.batches = 0
        self.extractions: list[Extraction] = []

    def pause(self) -> None:
        self.batches += 1

    @property
    def rows(self) -> int:
        return sum(each.computed for each in self.extractions)


def extraction(model: ResNet, store: Path | None, counted: Counted, *, bf16: bool = False) -> Extraction:
    computing = Extraction(
        model,
        PREPROCESSING,
        Setup(device=torch.device("cpu"), bf16=bf16),
        store_folder=store,
        group=Group(),
        stop=StopFlag(),
        bad=BadImages(0),
    )
    counted.extractions.append(computing)
    return computing


def body(
    model: ResNet,
    data: Path,
    store: Path | None,
    counted: Counted,
    unreadable: tuple[str, ...] = (),
    *,
    in_bf16: Extraction | None = None,
) -> KeptBody:
    splits = [(split, file_digests(split.paths)) for split in (split_of(data), split_of(data, "valid"))]
    return KeptBody(
        model,
        *splits,
        PREPROCESSING,
        unreadable=unreadable,
        skip=2,
        pause=counted.pause,
        in_float32=extraction(model, store, counted),
        in_bf16=in_bf16,
    )


def close(left: Measured, right: Measured) -> None:
    assert left.gates.keys() == right.gates.keys()
    assert dict(left.ranges) == pytest.approx(dict(right.ranges), rel=1e-5)
    for name, gate in left.gates.items():
        other = right.gates[name]
        assert (gate.photos, gate.method) == (other.photos, other.method)
        assert gate.largest == pytest.approx(other.largest, abs=2e-4)
        assert gate.accuracy_before == pytest.approx(other.accuracy_before, abs=0.11)


def test_a_kept_body_says_what_the_simulation_says_and_computes_nothing_twice(
    model: ResNet, data: Path, tmp_path: Path
) -> None:
    plain = measure_formats(model, split_of(data), split_of(data, "valid"), PREPROCESSING, skip=2)
    first, second = Counted(), Counted()
    found = measure_body(model, body(model, data, tmp_path / "store", first))
    close(found, plain)
    assert first.rows >= 10
    assert measure_body(model, body(model, data, tmp_path / "store", second)) == found
    assert second.rows == 0
    assert second.batches == 1  # before the rows are asked for
    with torch.no_grad():  # another head on the same body
        model.fc.weight.mul_(3)
    close(
        measure_body(model, body(model, data, tmp_path / "store", second)),
        measure_formats(model, split_of(data), split_of(data, "valid"), PREPROCESSING, skip=2),
    )
    assert second.rows == 0
    close(measure_body(model, body(model, data, None, Counted())), measure_body(model, body(model, data, None, first)))


def test_where_a_training_computed_in_bf16_its_rows_are_what_bf16_costs(
    model: ResNet, data: Path, tmp_path: Path
) -> None:
    trained, kept = Counted(), Counted()
    validation = split_of(data, "valid")
    every = np.ones((len(validation), 1), np.bool_)
    in_bf16 = extraction(model, tmp_path / "store", trained, bf16=True)
    rows = in_bf16.split(validation, file_digests(validation.paths), (CENTRE,), every).rows
    computed = trained.rows

    later = extraction(model, tmp_path / "store", trained, bf16=True)
    found = body(model, data, tmp_path / "store", kept, in_bf16=later)
    halves, simulated = found.half(torch.bfloat16), body(model, data, None, Counted()).half(torch.bfloat16)

    assert {row.tobytes() for row in halves} <= {row.tobytes() for row in rows[:, :FEATURES]}
    assert trained.rows == computed  # nothing was computed again
    off = np.linalg.norm(halves - simulated, axis=1) / np.linalg.norm(simulated, axis=1)
    assert 0 < off.max() < 0.01


def test_ranges_are_taken_in_bf16_where_the_processor_computes_in_it_and_are_float32s_but_for_rounding(
    model: ResNet, data: Path, tmp_path: Path
) -> None:
    counted = Counted()
    exact = body(model, data, tmp_path / "store", counted).maxima()
    in_bf16 = extraction(model, tmp_path / "store", counted, bf16=True)
    rounded = body(model, data, tmp_path / "store", counted, in_bf16=in_bf16).maxima()
    assert exact.keys() == rounded.keys()
    off = [float(np.abs(rounded[name] / exact[name] - 1).max()) for name in exact]
    assert 0 < max(off) < 0.05
    assert np.median(off) < 0.02
    again = body(model, data, tmp_path / "store", counted).maxima()  # each format's are kept under its own name
    assert all(np.array_equal(again[name], exact[name]) for name in exact)


@pytest.mark.parametrize(
    ("test", "valid", "wanted", "chosen", "skip"),
    [
        (None, 40, 100, "valid", 8),
        (100, 100, 100, "test", 8),
        (58, 200, 100, "test", 8),  # half of those that are wanted, without the golden ones
        (57, 200, 100, "valid", 0),
        (58, 200, 400, "valid", 0),  # a GPU can look at more
        (28, 40, 100, "test", 8),
        (4, 10, 100, "valid", 0),
    ],
)
def test_formats_are_measured_on_test_photos_where_there_are_enough(
    test: int | None, valid: int, wanted: int, chosen: str, skip: int
) -> None:
    def split(name: str, count: int) -> Split:
        root = Path(name)
        return Split(name=name, root=root, paths=tuple(root / f"{i}.jpg" for i in range(count)), labels=(0,) * count)

    folders = ImageFolders(
        classes=("a", "b"),
        train=split("train", 300),
        valid=split("valid", valid),
        test=None if test is None else split("test", test),
        valid_split_off=False,
    )
    found, golden = photos_for_gates(folders, 8, wanted=wanted)
    assert (found.name, golden) == (chosen, skip)


def test_changed_photos_never_meet_old_rows(model: ResNet, data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    before = body(model, data, store, Counted())
    old, ranges = before.maxima(), {}
    ranges = {name: float(values.max()) for name, values in old.items()}
    rows = before.int8(ranges)
    for split in ("train", "valid"):
        split_of(data, split).paths[3].write_bytes(jpeg(777))
    late = body(model, data, store, Counted())
    changed = [not np.array_equal(late.int8(ranges)[i], rows[i]) for i in range(len(rows))]
    assert sum(changed) == 1
    assert sum(late.maxima()["conv1"] != old["conv1"]) == 1
    fresh = body(model, data, None, Counted())
    assert np.allclose(fresh.int8(ranges), late.int8(ranges), atol=1e-4)


def test_a_photo_that_is_rewritten_while_it_is_computed_is_kept_under_no_name(
    model: ResNet, data: Path, tmp_path: Path
) -> None:
    slow = body(model, data, tmp_path / "store", Counted())
    split_of(data, "valid").paths[1].write_bytes(jpeg(778))  # after its digest was taken
    ranges = {name: float(values.max()) for name, values in slow.maxima().items()}
    slow.int8(ranges)
    counted = Counted()
    body(model, data, tmp_path / "store", counted).int8(ranges)
    assert counted.batches == (2 if has_int8_kernels() else 1)  # all 12 are computed again, by threads in eights


def test_what_cannot_be_read_is_left_out_or_said(model: ResNet, data: Path) -> None:
    path = split_of(data, "valid").paths[1]
    path.write_bytes(b"no picture")
    assert len(body(model, data, None, Counted(), (str(path),)).labels) == 12 - 1 - 2
    with pytest.raises(PhotosChanged):
        body(model, data, None, Counted()).int8(dict.fromkeys(body(model, data, None, Counted()).maxima(), 1.0))


def test_the_largest_activations_are_those_of_the_simulation_with_or_without_the_folded_body(
    model: ResNet, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded = body(model, data, None, Counted()).maxima()
    monkeypatch.setattr(Extraction, "largest_activations", lambda *_: None)
    simulated = body(model, data, None, Counted()).maxima()
    assert list(folded) == list(simulated) == list(network.activations())
    for name, values in simulated.items():
        np.testing.assert_allclose(folded[name], values, rtol=1e-4, err_msg=name)
        assert len(set(values)) > 1


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_the_largest_activations_of_a_picture_do_not_depend_on_its_neighbours(
    model: ResNet, data: Path, bf16: bool
) -> None:
    split = split_of(data)
    computing = extraction(model, None, Counted(), bf16=bf16)
    whole = computing.largest_activations(split)
    assert whole is not None
    assert whole.shape == (len(split), len(network.activations()))
    alone = computing.largest_activations(some_of(split, [5]))
    assert alone is not None
    assert np.array_equal(alone[0], whole[5])


def test_a_body_that_is_not_folded_leaves_the_largest_activations_to_the_simulation(
    model: ResNet, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = body(model, data, None, Counted()).maxima()
    monkeypatch.setattr(frozen_body, "TOLERANCE", {False: 0.0, True: 0.0})
    assert extraction(model, None, Counted()).largest_activations(split_of(data)) is None
    found = body(model, data, None, Counted()).maxima()
    assert "folded they are off by" in caplog.text
    assert all(np.allclose(found[name], expected[name], rtol=1e-4) for name in expected)


def test_looking_at_activations_ends_with_a_stop_and_at_a_picture_that_cannot_be_read(
    model: ResNet, data: Path
) -> None:
    split, computing = split_of(data), extraction(model, None, Counted())
    computing._stop.reason = "SIGTERM"
    with pytest.raises(Interrupted):
        computing.largest_activations(split)
    split.paths[3].write_bytes(b"no image")
    assert extraction(model, None, Counted()).largest_activations(split) is None
    with pytest.raises(PhotosChanged):
        body(model, data, None, Counted()).maxima()


def test_threads_that_begin_later_compute_with_as_many_as_before(model: ResNet, data: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        extraction(model, None, Counted()).largest_activations(split_of(data))
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
