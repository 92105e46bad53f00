"""What lies around the pixels of a file, so that it can be counted and left out.

A picture is as good as its pixels: profiles, texts, thumbnails and bytes behind the end, however large or broken, are
no reason to refuse it. `bare` gives the pixels without them to a decoder that stumbled over them.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in pixels, FF is followed by 00 or a restart marker
_USUAL_MARKER = re.compile(rb"\xff[\xc0-\xc4\xda-\xdd\xe0-\xef\xfe]")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _TEM = 0xD8, 0xD9, 0xDA, 0x01  # ITU-T T.81, table B.1
_USUAL_SEGMENTS = 1000  # before the pixels: a photo has dozens, a file of 4 MB that is to keep a core busy a million
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_END = bytes([0xFF, _END_OF_IMAGE])
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # APP0 to APP15, COM
_APP1, _APP14 = 0xE1, 0xEE
_UPRIGHT = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")  # what may know the orientation: EXIF and XMP
_ADOBE, _ADOBE_BYTES = b"Adobe", 12  # how colours are stored
_AFTERS = (b"\0" * 4096, b"\x5a" * 4096)  # any two: what a decoder that lacks pixels would take for different ones

_TRANSPARENCY_BYTES = {0: (2, 2), 2: (6, 6), 3: (1, 256)}  # PNG's colour type -> shortest and longest tRNS
_CHUNK_NAME = re.compile(rb"[A-Za-z]{4}")
_PIXEL_CHUNK = re.compile(rb"PLTE|tRNS|IDAT|IEND")
_XMP_TEXT = b"XML:com.adobe.xmp\0\0"  # not compressed

_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ANMF")  # a frame: of an animation the first one is enough
_WEBP_CHUNK = re.compile(rb"VP8[ LX]|ALPH|ANIM|ANMF|ICCP|EXIF|XMP ")
_WEBP_FLAGS, _WEBP_EXIF = 0x12, 0x08  # alpha and animation; of the flags that announce metadata, EXIF's


@dataclass(frozen=True, slots=True)
class Frame:
    """What a JPEG says of its pixels: bits of a sample, sides in pixels, components of a pixel."""

    bits: int
    height: int
    width: int
    components: int


def plain_frame(data: bytes) -> Frame | None:
    """The frame of a JPEG whose first pass is sequential and has all of its components; None of any other, and where
    metadata may say that the pixels are to be turned, or that their colours are stored in another way."""
    frame = b""
    for marker, start, end in islice(_segments(data), _USUAL_SEGMENTS):
        if marker in _FRAMES:
            frame = data[start:end]
        elif marker == _APP14 or (marker == _APP1 and _what_matters(marker, data[start + 4 : end])):
            return None
        elif marker == _START_OF_SCAN:
            if not _is_only_scan(frame, data[start : start + 5]):
                return None
            return Frame(*struct.unpack(">BHHB", frame[4:10]))
    return None


def num_scans(data: bytes) -> int:
    """The number of passes over the pixels that a decoder makes in a JPEG file, up to its end marker.

    What looks like one inside of metadata does not count. A sequential JPEG with all components in its first pass has
    no other, which tells most photos without a look at their pixels.
    """
    scans, frame = 0, b""
    for marker, start, end in _segments(data):
        if marker in _FRAMES:
            frame = data[start:end]
        elif marker == _START_OF_SCAN:
            scans += 1
            if _is_only_scan(frame, data[start : start + 5]):
                break
    return scans


def bare(data: bytes) -> tuple[bytes, ...]:
    """Files of the pixels of a JPEG, PNG or WebP without metadata; empty where some are missing, and for other formats.

    A JPEG without its end marker gives two, with different bytes in the place of the end: only if both decode to the
    same picture were all of its pixels there.
    """
    if data.startswith(PNG_SIGNATURE):
        return (_bare_png(data),)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return (_bare_webp(data),)
    return _bare_jpeg(data) if data.startswith(JPEG_SIGNATURE) else ()


def _segments(data: bytes, *, mistrust: bool = False) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte and end of each segment of a JPEG, the end marker last; a scan's pixels belong to none.

    Args:
        mistrust: do not believe a length of metadata behind which no segment follows.
    """
    at = 2
    while found := _MARKER.search(data, at):
        marker, start, at = data[found.end() - 1], found.start(), found.end()
        if marker not in (_TEM, _START_OF_IMAGE, _END_OF_IMAGE):
            at += max(2, int.from_bytes(data[at : at + 2]))
        if mistrust and marker in _METADATA and data[at : at + 1] != b"\xff":
            following = _USUAL_MARKER.search(data, start + 4)
            at = following.start() if following else len(data)
        yield marker, start, at
        if marker == _END_OF_IMAGE:
            return


def _is_only_scan(frame: bytes, scan: bytes) -> bool:
    """Whether a frame is sequential and the scan has all of its components: decoders look for no further one then."""
    return len(frame) > 9 and frame[1] not in _PROGRESSIVE and scan[4:5] == frame[9:10]


def _bare_jpeg(data: bytes) -> tuple[bytes, ...]:
    kept, scans, frame, known = [data[:2]], [], b"", set()
    pixels_end = 0  # in `kept`
    for marker, start, end in _segments(data, mistrust=True):
        segment = data[start:end]
        if marker == _END_OF_IMAGE:
            return (b"".join([*kept, segment]),)
        if marker in _METADATA:
            beginning = _what_matters(marker, segment[4:])
            if not beginning or beginning in known:
                continue
            known.add(beginning)
        kept.append(segment)
        if marker in _FRAMES:
            frame = segment
        elif marker == _START_OF_SCAN:
            following = _MARKER.search(data, end)
            kept.append(data[end : following.start() if following else len(data)])
            scans.append(segment)
            pixels_end = len(kept)
            if _is_only_scan(frame, segment):
                if following and data[following.start() + 1] == _END_OF_IMAGE:
                    return (b"".join([*kept, _END]),)
                break
    if not _is_whole(frame, scans):
        return ()
    return tuple(b"".join([*kept[:pixels_end], after, _END]) for after in _AFTERS)


def _what_matters(marker: int, content: bytes) -> bytes:
    """How a segment of metadata begins that says how the pixels are to be seen; empty for all others."""
    if marker == _APP1:
        return next((name for name in _UPRIGHT if content.startswith(name)), b"")
    return _ADOBE if marker == _APP14 and content.startswith(_ADOBE) and len(content) >= _ADOBE_BYTES else b""


def _is_whole(frame: bytes, scans: Sequence[bytes]) -> bool:
    """Whether scans, if the last one is not cut, have every bit of every coefficient of every component."""
    missing = {(component, k) for component in frame[10::3] for k in range(64)}
    for scan in scans:
        number = scan[4] if len(scan) > 4 else 0
        spectrum = scan[5 + 2 * number : 8 + 2 * number]  # first, last, and in its low half the bits still missing
        if len(spectrum) == 3 and spectrum[2] & 0x0F == 0:
            missing -= {(c, k) for c in scan[5 : 5 + 2 * number : 2] for k in range(spectrum[0], spectrum[1] + 1)}
    return bool(frame) and not missing


def _bare_png(data: bytes) -> bytes:
    """The chunks that the pixels are made of; a broken transparency is left out."""
    kept, at, colour_type = [PNG_SIGNATURE], len(PNG_SIGNATURE), -1
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"IHDR" and length == 13 and end <= len(data):
            colour_type = data[at + 8 + 9]
        shortest, longest = _TRANSPARENCY_BYTES.get(colour_type, (1, 0))
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (name == b"tRNS" and shortest <= length <= longest):
            kept.append(data[at:end])
        elif name == b"eXIf" or data.startswith(_XMP_TEXT, at + 8):
            if _is_intact(data[at:end]):  # they may know the orientation
                kept.append(data[at:end])
        elif not (end == len(data) or _CHUNK_NAME.fullmatch(data, end + 4, end + 8)):
            following = _PIXEL_CHUNK.search(data, at + 8)  # the length of the metadata is wrong
            end = following.start() - 4 if following else len(data)
        if name == b"IEND":
            break
        at = end
    return b"".join(kept)


def _is_intact(chunk: bytes) -> bool:
    return chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4)


def _bare_webp(data: bytes) -> bytes:
    """The first frame, how it is composed, and EXIF."""
    kept, exif, flags, at, seen = [], b"", b"", 12, False
    while at + 8 <= len(data):
        start, (name, length) = at, struct.unpack_from("<4sI", data, at)
        content = data[at + 8 : at + 8 + length]
        whole = len(content) == length
        if name == b"VP8X" and content:
            flags = content
        elif name == b"EXIF" and whole and not exif:
            exif = _riff(name, content)
        elif not seen and whole and name in (b"ALPH", b"ANIM", *_WEBP_PIXELS):
            kept.append(_riff(name, content))
        seen = seen or name in _WEBP_PIXELS
        at += 8 + length + length % 2
        if not (seen or _WEBP_CHUNK.match(data, at)):
            following = _WEBP_CHUNK.search(data, start + 8)  # the length of the metadata is wrong
            at = following.start() if following else len(data)
    if flags:
        kept.insert(0, _riff(b"VP8X", bytes([flags[0] & _WEBP_FLAGS | _WEBP_EXIF * bool(exif)]) + flags[1:]))
    return _riff(b"RIFF", b"".join([b"WEBP", *kept, exif]))


def _riff(name: bytes, content: bytes) -> bytes:
    return name + len(content).to_bytes(4, "little") + content + bytes(len(content) % 2)
