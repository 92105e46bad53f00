"""The image formats that are accepted, everywhere: in the folders of a data set, in an artifact, over the wire.

A format is one line in FORMATS. What opens, looks for, names, sends and refuses files is derived from it. Pillow must
be able to read the format without another package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """A format that is accepted.

    Args:
        name: for people.
        pillow: Pillow's name, as `Image.open(formats=...)` takes it.
        suffixes: of its files, in lower case with the dot; they are compared in lower case. The first is the usual one.
        media_types: of a request's body, in lower case. The first is the one a client sends.
        signatures: (offset, bytes there) of the first bytes of its files, any of which tells it.
        max_megapixels: larger pictures are refused. 100 are above any camera in common use, at most 0.4 GB once
            decoded, and the decoder can be stopped on the way.
    """

    name: str
    pillow: str
    suffixes: tuple[str, ...]
    media_types: tuple[str, ...]
    signatures: tuple[tuple[int, bytes], ...]
    max_megapixels: int = 100


@dataclass(frozen=True, kw_only=True)
class OtherKind:
    """A kind of file that people take for an image and that is not accepted, to tell them what it is instead.

    Args:
        name: for people, with its article.
        suffixes: of its files, in lower case with the dot; empty where nobody takes such a file for an image.
        signatures: (offset, bytes there) of the first bytes of its files, any of which tells it; empty where none does.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    signatures: tuple[tuple[int, bytes], ...] = ()


# Pillow's "JPEG" includes MPO, the multi-picture JPEG of phones and cameras. JPEG is also what we write ourselves.
JPEG = ImageFormat(
    name="JPEG",
    pillow="JPEG",
    suffixes=(".jpg", ".jpeg"),
    media_types=("image/jpeg",),
    signatures=((0, b"\xff\xd8\xff"),),
)
FORMATS: tuple[ImageFormat, ...] = (
    JPEG,
    ImageFormat(
        name="PNG",
        pillow="PNG",
        suffixes=(".png",),
        media_types=("image/png",),
        signatures=((0, b"\x89PNG\r\n\x1a\n"),),
    ),
    # WebP's decoder takes 16 bytes a pixel and reads the file in one go: nothing stops it. 25 megapixels are 0.4 GB.
    ImageFormat(
        name="WebP",
        pillow="WEBP",
        suffixes=(".webp",),
        media_types=("image/webp",),
        signatures=((8, b"WEBP"),),
        max_megapixels=25,
    ),
    ImageFormat(name="BMP", pillow="BMP", suffixes=(".bmp",), media_types=("image/bmp",), signatures=((0, b"BM"),)),
    # Of an animation the first frame, of several pages the first.
    ImageFormat(name="GIF", pillow="GIF", suffixes=(".gif",), media_types=("image/gif",), signatures=((0, b"GIF8"),)),
    # libtiff takes a strip or a tile at a time, which may be the whole picture at 8 bytes a pixel; nothing stops it.
    ImageFormat(
        name="TIFF",
        pillow="TIFF",
        suffixes=(".tif", ".tiff"),
        media_types=("image/tiff",),
        signatures=((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        max_megapixels=50,
    ),
    # As of WebP: read in one go, 16 bytes a pixel.
    ImageFormat(
        name="AVIF",
        pillow="AVIF",
        suffixes=(".avif",),
        media_types=("image/avif",),
        signatures=((4, b"ftypavif"), (4, b"ftypavis")),
        max_megapixels=25,
    ),
)

# In the order in which their signatures are compared. What has an accepted suffix is passed over below.
_KNOWN_KINDS = (
    OtherKind(name="a Photoshop file", signatures=((0, b"8BPS"),)),
    OtherKind(name="a PDF", signatures=((0, b"%PDF"),)),
    OtherKind(name="a zip archive", signatures=((0, b"PK\3\4"),)),
    OtherKind(name="an icon", signatures=((0, b"\0\0\1\0"),)),
    OtherKind(
        name="a HEIC",
        suffixes=(".heic", ".heif"),
        signatures=((4, b"ftyphei"), (4, b"ftyphev"), (4, b"ftypmif1"), (4, b"ftypmsf1")),
    ),
    OtherKind(name="a JPEG XL", suffixes=(".jxl",), signatures=((0, b"\xff\x0a"), (4, b"JXL "))),
    OtherKind(
        name="a video",
        suffixes=(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm"),
        signatures=(
            *((4, atom) for atom in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")),  # MP4 and QuickTime
            *((0, start) for start in (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1", b"OggS")),
            (8, b"AVI "),
        ),
    ),
    OtherKind(name="a Git LFS pointer and not the file it stands for", signatures=((0, b"version https://git-lfs"),)),
    OtherKind(name="a JPEG 2000", suffixes=(".jp2",), signatures=((4, b"jP  "),)),
    OtherKind(name="an SVG", suffixes=(".svg",), signatures=((0, b"<svg"),)),
    OtherKind(name="an XML or SVG file", signatures=((0, b"<?xml"),)),
    OtherKind(name="a web page", signatures=tuple((0, tag) for tag in (b"<!DOCTYPE", b"<html", b"<head", b"<!--"))),
    OtherKind(name="a JSON text", signatures=((0, b"{"), (0, b"["))),
    OtherKind(name="a compressed file", signatures=((0, b"\x1f\x8b"), (0, b"BZh"), (0, b"7z\xbc\xaf"), (0, b"Rar!"))),
    OtherKind(name="a macOS resource file", signatures=((0, b"\0\5\x16\7"),)),  # ._NAME, beside the image NAME
    OtherKind(name="a JPEG", suffixes=(".jfif", ".jpe")),
    OtherKind(name="a raw file", suffixes=(".raw",)),
)


def one_of(words: Sequence[str]) -> str:
    """`("a", "b", "c")` -> `a, b or c`."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


def begins_as_image(data: bytes) -> bool:
    """Whether the first bytes are those of a format that is accepted. What follows may still be damaged."""
    return format_begun(data) is not None


def format_begun(data: bytes) -> ImageFormat | None:
    """The accepted format whose first bytes these are; None for anything else."""
    for each in FORMATS:
        if any(data.startswith(magic, offset) for offset, magic in each.signatures):
            return each
    return None


PILLOW_NAMES: tuple[str, ...] = tuple(each.pillow for each in FORMATS)
MEDIA_TYPE_BY_SUFFIX: Mapping[str, str] = {suffix: each.media_types[0] for each in FORMATS for suffix in each.suffixes}
SUFFIXES: tuple[str, ...] = tuple(MEDIA_TYPE_BY_SUFFIX)
MEDIA_TYPES: tuple[str, ...] = tuple(media_type for each in FORMATS for media_type in each.media_types)
SEND_HINT = f"send a {one_of([each.name for each in FORMATS])} file"
OTHER_KINDS: tuple[OtherKind, ...] = tuple(kind for kind in _KNOWN_KINDS if not set(kind.suffixes) & set(SUFFIXES))
OTHER_SUFFIXES: frozenset[str] = frozenset(suffix for kind in _KNOWN_KINDS for suffix in kind.suffixes) - set(SUFFIXES)
