"""A training of the head: the frozen body sees each view of an image once, and everything else is as ever."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.conftest import draw_norms, jpeg
from tests.head_training import CONFIG, SIZE, make_pictures, split_of

from image_classifier.contract.errors import DataError
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.tensorstats import input_statistics
from image_classifier.training import features as features_module
from image_classifier.training import frozen_body
from image_classifier.training.bad_images import BadImages
from image_classifier.training.data import ImageDataset, Loader
from image_classifier.training.distributed import Group
from image_classifier.training.evaluate import evaluate
from image_classifier.training.feature_loader import FeatureLoader, channel_statistics
from image_classifier.training.features import Extraction, SplitFeatures
from image_classifier.training.frozen_body import TOLERANCE, FrozenBody
from image_classifier.training.head_only import needed_views
from image_classifier.training.setup import Setup
from image_classifier.training.stop import Interrupted, StopFlag
from image_classifier.training.views import read_views, view_index, views_of
from image_classifier.vision.contrast import FAINT, FLAT
from image_classifier.vision.fingerprint import digests
from image_classifier.vision.folders import Split, scan
from image_classifier.vision.model import build_model, head
from image_classifier.vision.network import FEATURES
from image_classifier.vision.preprocess import Preprocessing, load_pixels, normalise
from image_classifier.vision.resnet import ResNet

PREPROCESSING = Preprocessing.for_image_size(SIZE)
FLOAT32, BF16 = (Setup(device=torch.device("cpu"), bf16=bf16) for bf16 in (False, True))


@pytest.fixture(scope="module")
def model() -> ResNet:
    """As after training: no batch norm is the identity."""
    torch.manual_seed(0)
    made = build_model(3)
    draw_norms(made)
    return made.eval().requires_grad_(False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_pictures(tmp_path / "data")


def extraction(
    model: ResNet,
    store: Path | None,
    *,
    setup: Setup = FLOAT32,
    stop: StopFlag | None = None,
    limit: int = 0,
    readers: int = 0,
) -> Extraction:
    return Extraction(
        model,
        PREPROCESSING,
        setup,
        store_folder=store,
        group=Group(),
        stop=stop if stop is not None else StopFlag(),
        bad=BadImages(limit),
        readers=readers,
    )


def extract(
    model: ResNet,
    split: Split,
    store: Path | None = None,
    views: tuple[str, ...] = ("centre",),
    *,
    setup: Setup = FLOAT32,
) -> tuple[SplitFeatures, int]:
    """The features, and how many rows had to be computed."""
    made = extraction(model, store, setup=setup)
    contents = digests(scan({each.name: each for each in split.root.parent.iterdir()}, valid_fraction=0.2, seed=0))
    wanted = np.ones((len(split), len(views)), np.bool_)
    return made.split(split, contents[split.name], views, wanted), made.computed


def in_order(features: SplitFeatures) -> NDArray[np.float32]:
    """(images, WIDTH) of the first view."""
    return features.rows[features.places[:, 0]]


def exact(model: ResNet, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What torch computes before the head, in float32."""
    images = torch.stack([torch.from_numpy(normalise(each, PREPROCESSING)) for each in pixels])
    body = torch.nn.Sequential(*list(model.children())[:-1], torch.nn.Flatten(1))
    with torch.inference_mode():
        return body(images).numpy()


def pictures(count: int) -> NDArray[np.uint8]:
    return np.stack([load_pixels(jpeg(seed), PREPROCESSING) for seed in range(count)])


@pytest.mark.parametrize("setup", [FLOAT32, BF16], ids=["float32", "bf16"])
def test_the_folded_body_gives_torchs_features(model: ResNet, setup: Setup) -> None:
    pixels = pictures(5)
    body = FrozenBody(model, PREPROCESSING, setup, pixels)
    assert body.is_fast
    found, wanted = body.features(pixels)[0], exact(model, pixels)
    distance = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert distance.max() < TOLERANCE[setup.bf16]


@pytest.mark.parametrize("setup", [FLOAT32, BF16], ids=["float32", "bf16"])
def test_the_features_of_a_picture_do_not_depend_on_its_neighbours(model: ResNet, setup: Setup) -> None:
    pixels = pictures(8)
    body = FrozenBody(model, PREPROCESSING, setup, pixels)
    together = body.features(pixels)[0]
    assert np.array_equal(body.features(pixels[3:4])[0], together[3:4])
    assert np.array_equal(body.features(pixels[::-1].copy())[0], together[::-1])


def test_a_body_that_folded_gives_other_features_is_used_as_it_is(
    model: ResNet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(frozen_body, "TOLERANCE", {False: 0.0, True: 0.0})
    split = split_of(data)
    features, computed = extract(model, split, tmp_path / "store")
    assert "folded they are off by" in caplog.text
    assert computed == len(split)
    wanted = exact(model, np.stack([load_pixels(path, PREPROCESSING) for path in split.paths]))
    np.testing.assert_allclose(in_order(features)[:, :FEATURES], wanted, rtol=1e-4, atol=1e-5)
    monkeypatch.undo()
    assert extract(model, split, tmp_path / "store")[1] == len(split)  # these bits were not kept for others


def test_a_second_job_computes_nothing_and_sees_the_same_bits(model: ResNet, data: Path, tmp_path: Path) -> None:
    split, views = split_of(data), ("centre", "mirror", "standard-2")
    first, computed = extract(model, split, tmp_path / "store", views)
    assert computed == 3 * len(split)
    again, computed = extract(model, split, tmp_path / "store", views)
    assert computed == 0
    assert np.array_equal(first.rows[first.places], again.rows[again.places])
    alone, _ = extract(model, split, None, views)
    assert np.array_equal(first.rows[first.places], alone.rows[alone.places])


def test_without_a_store_some_rows_are_kept_for_as_long_as_the_job_runs(
    model: ResNet, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(data)
    contents = digests(scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0))["train"]
    every = np.ones((len(split), 1), np.bool_)
    for room, left in ((1000, 0), (5, len(split) - 5)):
        monkeypatch.setattr(features_module, "RECENT", room)
        made = extraction(model, None)
        first = made.split(split, contents, ("centre",), every)
        again = made.split(split, contents, ("centre",), every)
        assert made.computed == len(split) + left
        assert np.array_equal(in_order(first), in_order(again))
    changed = made.split(split, ["another", *contents[1:]], ("centre",), every)
    assert np.array_equal(in_order(changed), in_order(first))  # a name that nothing is known under: computed


def test_what_another_job_began_is_finished_with_the_same_bits(model: ResNet, data: Path, tmp_path: Path) -> None:
    split = split_of(data)
    extract(model, split, tmp_path / "store", ("centre",))
    both, computed = extract(model, split, tmp_path / "store", ("centre", "mirror"))
    assert computed == len(split)
    alone, _ = extract(model, split, None, ("centre", "mirror"))
    assert np.array_equal(both.rows[both.places], alone.rows[alone.places])


def test_changed_pictures_never_meet_old_features(model: ResNet, data: Path, tmp_path: Path) -> None:
    split = split_of(data)
    before, _ = extract(model, split, tmp_path / "store")
    split.paths[2].write_bytes(jpeg(999))  # the same name
    split.paths[3].rename(tmp_path / "kept.jpg")  # two pictures change places
    split.paths[4].rename(split.paths[3])
    (tmp_path / "kept.jpg").rename(split.paths[4])
    after, computed = extract(model, split, tmp_path / "store")
    assert computed == 1
    assert np.array_equal(in_order(after), in_order(extract(model, split)[0]))
    assert np.array_equal(in_order(after)[3], in_order(before)[4])
    assert not np.array_equal(in_order(after)[2], in_order(before)[2])


def test_a_picture_that_changes_while_it_is_read_is_kept_under_its_own_content(
    model: ResNet, data: Path, tmp_path: Path
) -> None:
    split = split_of(data)
    folders = scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0)
    contents = digests(folders)["train"]  # the job has looked at the files
    original = split.paths[0].read_bytes()
    split.paths[0].write_bytes(jpeg(999))  # and now one is another
    extraction(model, tmp_path / "store").split(split, contents, ("centre",), np.ones((len(split), 1), np.bool_))
    split.paths[0].write_bytes(original)
    found, computed = extract(model, split, tmp_path / "store")
    assert computed == 1
    assert np.array_equal(in_order(found), in_order(extract(model, split)[0]))


def test_changed_weights_size_or_precision_never_meet_old_features(model: ResNet, data: Path, tmp_path: Path) -> None:
    split = split_of(data)
    extract(model, split, tmp_path / "store")
    assert extract(model, split, tmp_path / "store", setup=BF16)[1] == len(split)
    other = build_model(3).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        head(other).weight.add_(1.0)
    assert extract(other, split, tmp_path / "store")[1] == 0  # the head is no part of the body
    with torch.no_grad():
        other.bn1.running_mean[0] += 1e-3
    found, computed = extract(other, split, tmp_path / "store")
    assert computed == len(split)
    assert np.array_equal(in_order(found), in_order(extract(other, split)[0]))
    larger = Extraction(
        model, Preprocessing.for_image_size(40), FLOAT32,
        store_folder=tmp_path / "store", group=Group(), stop=StopFlag(), bad=BadImages(0),
    )  # fmt: skip
    folders = scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0)
    larger.split(split, digests(folders)["train"], ("centre",), np.ones((len(split), 1), np.bool_))
    assert larger.computed == len(split)


def test_unreadable_images_are_named_counted_and_left_out(
    model: ResNet, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = split_of(data)
    split.paths[1].write_bytes(b"no image")
    split.paths[5].write_bytes(b"")
    made = extraction(model, tmp_path / "store", limit=2)
    features = made.split(split, [""] * len(split), ("centre",), np.ones((len(split), 1), np.bool_))
    assert set(features.unreadable) == {1, 5}
    assert str(split.paths[1]) in features.unreadable[1]
    assert caplog.text.count("skipped: ") == 2
    loader = FeatureLoader(split, 4, image_size=SIZE)
    loader.features = features
    batches = list(loader.epoch(1))
    assert [list(batch.unreadable) for batch in batches][:2] == [[1], [5]]
    assert sorted(index for batch in batches for index in batch.indices.tolist()) == sorted(
        set(range(len(split))) - {1, 5}
    )
    with pytest.raises(DataError, match="2 images cannot be read, more than max_bad_images=1"):
        extraction(model, None, limit=1).split(
            split, [""] * len(split), ("centre",), np.ones((len(split), 1), np.bool_)
        )


def test_a_stop_ends_the_computing_and_what_was_computed_is_kept(model: ResNet, data: Path, tmp_path: Path) -> None:
    split, stop = split_of(data), StopFlag()
    made = extraction(model, tmp_path / "store", stop=stop)
    made._preparing = lambda _: setattr(stop, "reason", "SIGTERM")
    with pytest.raises(Interrupted):
        made.split(split, [""] * len(split), ("centre",), np.ones((len(split), 1), np.bool_))
    assert 0 < made.computed < len(split)
    assert extract(model, split, tmp_path / "store")[1] == len(split) - made.computed


def test_validation_on_features_is_validation_of_the_network(model: ResNet, data: Path) -> None:
    split = split_of(data, "valid")
    on_features = FeatureLoader(split, 5, image_size=SIZE)
    on_features.features, _ = extract(model, split)
    on_images = Loader(ImageDataset(split, PREPROCESSING), 5, workers=0)
    found, wanted = (
        evaluate(network, loader, Observer(), BadImages(0), StopFlag(), setup=FLOAT32)
        for network, loader in ((head(model), on_features), (model, on_images))
    )
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert np.array_equal(found.predicted, wanted.predicted)
    assert np.array_equal(found.indices, wanted.indices)
    np.testing.assert_allclose(found.probability, wanted.probability, rtol=1e-4)


def test_the_inputs_statistics_are_those_of_the_images(model: ResNet, data: Path) -> None:
    split = split_of(data)
    features, _ = extract(model, split)
    loader = Loader(ImageDataset(split, PREPROCESSING), len(split), workers=0)
    images, _ = loader.on_device(next(iter(loader.epoch())), torch.device("cpu"))
    found = channel_statistics(torch.from_numpy(in_order(features)[:, FEATURES:]), SIZE * SIZE)
    for channel, wanted in input_statistics(images).items():
        assert {name: float(value) for name, value in found[channel].items()} == pytest.approx(
            {name: float(value) for name, value in wanted.items()}, rel=1e-4, abs=1e-5
        )


def test_views_are_the_centre_its_mirror_and_crops_that_every_job_cuts_alike(data: Path) -> None:
    path = split_of(data).paths[0]
    names = views_of(CONFIG.replace(feature_views=4))
    assert names == ("centre", "mirror", "standard-2", "standard-3")
    assert views_of(CONFIG.replace(feature_views=4, augment="none")) == ("centre",)
    assert views_of(CONFIG.replace(feature_views=1)) == ("centre",)
    _, views = read_views(path, PREPROCESSING, names)
    assert np.array_equal(views["centre"], load_pixels(path, PREPROCESSING))
    assert np.array_equal(views["mirror"], views["centre"][:, ::-1])
    assert not np.array_equal(views["standard-2"], views["standard-3"])
    _, again = read_views(path, PREPROCESSING, ("standard-3",))
    assert np.array_equal(again["standard-3"], views["standard-3"])
    other, _ = read_views(path, PREPROCESSING, ("centre",))
    shutil.copy(path, path.with_name("copy.jpg"))
    same, copied = read_views(path.with_name("copy.jpg"), PREPROCESSING, ("standard-3",))
    assert same == other
    assert np.array_equal(copied["standard-3"], views["standard-3"])


def test_each_epoch_shows_another_view_and_only_needed_views_are_computed() -> None:
    indices = np.arange(6)
    assert view_index(1, indices, 2).tolist() == [0, 1, 0, 1, 0, 1]
    assert view_index(2, indices, 2).tolist() == [1, 0, 1, 0, 1, 0]
    assert needed_views(6, 2, 1, 10).all()
    assert needed_views(6, 2, 1, 1).sum() == 6  # one epoch sees each image once
    assert needed_views(6, 4, 9, 10).sum() == 12  # resumed near the end
    assert needed_views(6, 4, 1, 3).sum() == 18


def test_pictures_that_show_nothing_are_noted_whether_their_features_are_kept_or_new(
    model: ResNet, data: Path, tmp_path: Path
):
    Image.new("RGB", (60, 50), (90, 120, 200)).save(data / "train" / "class-1" / "2.jpg")
    levels = np.linspace(100, 120, 60 * 50).reshape(50, 60).astype(np.uint8)
    Image.fromarray(levels).convert("RGB").save(data / "train" / "class-2" / "3.png")
    split = split_of(data)
    contents = digests(scan({each.name: each for each in data.iterdir()}, valid_fraction=0.2, seed=0))["train"]
    for _ in range(2):
        made = extraction(model, tmp_path / "store")
        made.split(split, contents, ("centre",), np.ones((len(split), 1), np.bool_))
        assert made._bad.contrast == {"train/class-1/2.jpg": FLAT, "train/class-2/3.png": FAINT}
    assert made.computed == 0
