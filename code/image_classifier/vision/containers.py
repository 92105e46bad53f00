"""What lies around the pixels of a JPEG and of a PNG, so that it can be counted and left out.

A picture is as good as its pixels: profiles, texts, thumbnails and bytes behind the end, however large or broken, are
no reason to refuse it. `bare` gives the pixels without them to a decoder that stumbled over them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in pixels, FF is followed by 00 or a restart marker
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # APP0 to APP15, COM
_APP1, _APP14 = 0xE1, 0xEE
_EXIF, _ADOBE = b"Exif\0\0", b"Adobe"  # the orientation; how colours are stored
_ADOBE_BYTES = 12
_AFTERS = (b"\0" * 4096, b"\x5a" * 4096)  # any two: what a decoder that lacks pixels would take for different ones
_TRANSPARENCY_BYTES = {0: (2, 2), 2: (6, 6), 3: (1, 256)}  # PNG's colour type -> shortest and longest tRNS


def num_scans(data: bytes) -> int:
    """The number of passes over the pixels in a JPEG file, up to its end marker. What looks like one inside of metadata
    does not count."""
    return sum(marker == _START_OF_SCAN for marker, _, _ in _segments(data))


def bare(data: bytes) -> tuple[bytes, ...]:
    """Files of the same pixels without metadata; empty for other formats than JPEG and PNG.

    A JPEG without its end marker gives two, with different bytes in the place of the end: only if both decode to the
    same picture were all of its pixels there.
    """
    if data.startswith(PNG_SIGNATURE):
        return (_bare_png(data),)
    return _bare_jpeg(data) if data.startswith(JPEG_SIGNATURE) else ()


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte and end of each segment of a JPEG, the end marker last; a scan's pixels belong to none."""
    at = 2
    while found := _MARKER.search(data, at):
        marker, start, at = data[found.end() - 1], found.start(), found.end()
        if marker not in (_TEM, _START_OF_IMAGE, _END_OF_IMAGE):
            at += max(2, int.from_bytes(data[at : at + 2]))
        yield marker, start, at
        if marker == _END_OF_IMAGE:
            return


def _bare_jpeg(data: bytes) -> tuple[bytes, ...]:
    kept, copied, ended = [], 0, False
    for marker, start, end in _segments(data):
        ended = marker == _END_OF_IMAGE
        if marker in _METADATA and not _matters(marker, data[start + 4 : end]):
            kept.append(data[copied:start])
            copied = end
        if ended:
            kept.append(data[copied:end])
            return (b"".join(kept),)
    pixels = b"".join([*kept, data[copied:]])
    return tuple(pixels + after + b"\xff\xd9" for after in _AFTERS)


def _matters(marker: int, content: bytes) -> bool:
    """Whether a segment says how the pixels are to be seen."""
    if marker == _APP1:
        return content.startswith(_EXIF)
    return marker == _APP14 and content.startswith(_ADOBE) and len(content) >= _ADOBE_BYTES


def _bare_png(data: bytes) -> bytes:
    """The chunks that the pixels are made of; a broken transparency is left out."""
    kept, at, colour_type = [PNG_SIGNATURE], len(PNG_SIGNATURE), -1
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"IHDR" and length == 13:
            colour_type = data[at + 8 + 9]
        shortest, longest = _TRANSPARENCY_BYTES.get(colour_type, (1, 0))
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name == b"tRNS" and shortest <= length <= longest):
            kept.append(data[at:end])
        if name == b"IEND":
            break
        at = end
    return b"".join(kept)
