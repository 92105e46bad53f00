"""Plain JPEGs by libjpeg-turbo's own interface: Pillow's pixels, and Pillow's sentences where there are none."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from image_classifier.contract.errors import ImageError, TooLarge
from image_classifier.vision import decode as module
from image_classifier.vision import usual_jpeg
from image_classifier.vision.decode import decode, decode_pixels
from image_classifier.vision.usual_jpeg import plain_size, scaled_down

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as the module asks for outside of pytest

ORIENTATION = 0x0112  # EXIF's tag


def photo(width: int = 301, height: int = 203) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    stream = io.BytesIO()
    (image or photo()).save(stream, "JPEG", **options)
    return stream.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return jpeg(exif=exif)


def damaged(seed: int) -> bytes:
    """Some bytes changed, left out or added, in the header or in the pixels."""
    rng = random.Random(seed)
    data = bytearray(jpeg(photo(90, 61), progressive=seed % 3 == 0, restart_marker_blocks=seed % 2))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(data), 700) if rng.random() < 0.6 else len(data))
        data[at : at + rng.choice((0, 1, 1, 1))] = rng.randbytes(rng.choice((0, 1, 1, 1, 20)))
    return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., NDArray[np.uint8]]:
    """`decode_pixels` as on a machine without simplejpeg."""

    def decoded(data: bytes, **options: int) -> NDArray[np.uint8]:
        with monkeypatch.context() as context:
            context.setattr(usual_jpeg, "simplejpeg", None)
            return decode_pixels(data, **options)

    return decoded


@pytest.fixture
def without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which Pillow decodes a JPEG."""

    def load(*_: object) -> None:
        raise AssertionError("Pillow decoded it")

    monkeypatch.setattr(module.JpegImageFile, "load", load)


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"subsampling": "4:1:1"},
        {"quality": 30, "optimize": True},
        {"progressive": True},
        {"restart_marker_blocks": 1},
        {"keep_rgb": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("min_side", [0, 200, 100, 50, 25])
@pytest.mark.usefixtures("without_pillow")
def test_pixels_are_pillows_at_every_scale(
    options: Mapping[str, object], min_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, arguments = jpeg(**options), {"min_side": min_side} if min_side else {}
    found = decode_pixels(data, **arguments)
    monkeypatch.undo()
    monkeypatch.setattr(usual_jpeg, "simplejpeg", None)
    np.testing.assert_array_equal(found, decode_pixels(data, **arguments))
    assert min(found.shape[:2]) == {0: 203, 200: 203, 100: 102, 50: 51, 25: 26}[min_side]


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (7, 7), (8, 8), (9, 200), (64, 65)], ids=str)
@pytest.mark.parametrize("min_side", [None, 1, 4, 8])
def test_pixels_of_small_pictures_are_pillows(
    size: tuple[int, int], min_side: int | None, by_pillow: Callable[..., NDArray[np.uint8]]
) -> None:
    data = jpeg(photo(*size))
    np.testing.assert_array_equal(decode_pixels(data, min_side=min_side), by_pillow(data, min_side=min_side))


@pytest.mark.usefixtures("without_pillow")
def test_grey_becomes_rgb() -> None:
    grey = photo().convert("L")
    pixels = decode_pixels(jpeg(grey, quality=100))
    assert (pixels == pixels[:, :, :1]).all()
    assert np.abs(pixels[:, :, 0].astype(int) - np.asarray(grey)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_as_pillow_turns_it(
    orientation: int, by_pillow: Callable[..., NDArray[np.uint8]]
) -> None:
    data = turned(orientation)
    assert plain_size(data) is None
    np.testing.assert_array_equal(decode_pixels(data), by_pillow(data))


def test_a_picture_and_its_pixels_are_the_same() -> None:
    data = jpeg()
    np.testing.assert_array_equal(np.asarray(decode(data)), decode_pixels(data))
    assert decode_pixels(data).flags.writeable


def outcome(decoded: Callable[..., NDArray[np.uint8]], data: bytes) -> tuple[object, object]:
    """Shape and bytes of the pixels, or an error's type and sentence."""
    try:
        pixels = decoded(data, min_side=20)
    except (ImageError, TooLarge) as error:
        return type(error), str(error)
    return pixels.shape, pixels.tobytes()


def test_damaged_bytes_come_to_what_pillow_makes_of_them(
    by_pillow: Callable[..., NDArray[np.uint8]], capfd: pytest.CaptureFixture[str]
) -> None:
    files = [damaged(seed) for seed in range(150)]
    capfd.readouterr()  # Pillow's encoder talks
    found = [outcome(decode_pixels, data) for data in files]
    assert capfd.readouterr() == ("", "")
    assert found == [outcome(by_pillow, data) for data in files]
    assert len({isinstance(shape, tuple) for shape, _ in found}) == 2  # some are pictures, some are not


def test_a_plain_jpeg_says_its_size() -> None:
    assert plain_size(jpeg()) == (301, 203)
    assert plain_size(jpeg(photo().convert("L"), comment="x", dpi=(72, 72), icc_profile=bytes(70_000))) == (301, 203)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8\xff",
        jpeg()[:200],
        jpeg(progressive=True),
        turned(1),
        jpeg(keep_rgb=True),
        jpeg(photo().convert("CMYK")),
        jpeg().replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),  # 12 bits
        jpeg().replace(b"\xff\xc0\x00\x11\x08\x00", b"\xff\xc0\x00\x11\x08\x00\x00\x00"),  # no height
        b"\x89PNG\r\n\x1a\n" + jpeg(),
    ],
    ids=["empty", "signature", "cut", "progressive", "exif", "rgb", "cmyk", "12-bit", "flat", "png"],
)
def test_what_is_not_plain_is_left_to_pillow(data: bytes) -> None:
    assert plain_size(data) is None


def test_scales_are_pillows() -> None:
    for size in ((301, 203), (4000, 3000), (8, 9000), (17, 16)):
        for min_side in (1, 7, 16, 100, 256, 5000):
            image = Image.open(io.BytesIO(jpeg(Image.new("RGB", size))))
            image.draft(None, (min_side, min_side))
            assert scaled_down(size, min_side) == image.size
        assert scaled_down(size, None) == size


def test_a_plain_jpeg_of_too_many_pixels_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usual_jpeg.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = bytes([0xFF] * 4)
    with pytest.raises(TooLarge, match="65535 x 65535"):
        decode_pixels(bytes(data))


def test_a_picture_too_large_to_be_held_twice_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usual_jpeg, "MOST_PIXELS", 301 * 203 - 1)
    monkeypatch.setattr(usual_jpeg.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    assert decode_pixels(jpeg()).shape == (203, 301, 3)


def test_a_header_of_too_many_parts_is_not_gone_through_for_a_plain_picture() -> None:
    data = jpeg()
    few, many = (data[:2] + b"\xff\xfe\x00\x02" * count + data[2:] for count in (900, 100_000))
    assert plain_size(few) == (301, 203)
    assert plain_size(many) is None
    np.testing.assert_array_equal(decode_pixels(many), decode_pixels(data))  # its pixels alone


def test_what_libjpeg_fails_at_it_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []

    def fails(data: bytes, *_: object, **__: object) -> None:
        given.append(data)
        raise ValueError("a corrupt file")

    monkeypatch.setattr(usual_jpeg.simplejpeg, "decode_jpeg", fails)
    assert decode_pixels(jpeg()).shape == (203, 301, 3)
    assert len(given) == 1
    decode_pixels(jpeg(progressive=True))
    assert len(given) == 2
