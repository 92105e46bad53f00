"""The photographs that number formats are measured on."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.head_training import SIZE, make_pictures, split_of

from image_classifier.training.golden import by_turns
from image_classifier.training.number_formats import photos
from image_classifier.vision.preprocess import Preprocessing, load


def test_photos_keep_their_order_however_many_are_decoded_at_once(tmp_path: Path) -> None:
    preprocessing = Preprocessing.for_image_size(SIZE)
    split = split_of(make_pictures(tmp_path / "data"), "train")
    paths = list(by_turns(split))
    paths[1].write_bytes(b"no picture any more")
    readable = [paths[0], *paths[2:]]
    label_of = dict(zip(split.paths, split.labels, strict=True))

    found = photos(split, preprocessing, count=3, skip=1)

    assert [len(batch) for batch in found.images] == [3]
    for image, path in zip(found.images[0], readable[1:4], strict=True):
        assert torch.equal(image, torch.from_numpy(load(path, preprocessing)))
    assert found.labels.tolist() == [label_of[path] for path in readable[1:4]]
    assert sum(map(len, photos(split, preprocessing, count=1000).images)) == len(readable)
