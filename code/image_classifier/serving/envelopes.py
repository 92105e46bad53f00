"""What images come in when they do not come alone: a form, JSON, lines of JSON. Opened here into the images themselves.

    multipart/form-data       each file of the form                     (browsers, curl -F image=@photo.jpg)
    application/json          {"image": "BASE64"}, {"images": ["BASE64", ...]} or {"instances": [{"b64": "BASE64"}]}
    application/jsonlines     one such object with one image on each line (batch transform with SplitType=Line)

A form's field `top_k`, and "top_k" of a JSON object, hold if the headers name none. Base64 may stand behind
`data:image/jpeg;base64,`, in lines, in the alphabet for addresses (RFC 4648, section 5), and without its padding. One
image is answered as if it had come alone, several with a list in their order, lines with lines; an image that is wrong
has its error in the place of its answer.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from image_classifier.contract.errors import RequestError, TooLarge
from image_classifier.contract.wire import ENGINE_HEADER, FORM_DATA_TYPE, JSON_LINES_TYPES, MAX_IMAGES
from image_classifier.serving.backend import Reply
from image_classifier.serving.codec import parse_top_k

_TOP_K = "top_k"
_ALPHABET = bytes.maketrans(b"-_", b"+/")
_BLANKS = b" \t\r\n"
_EXAMPLE = '{"image": "BASE64"} is understood, {"images": ["BASE64", ...]} and {"instances": [{"b64": "BASE64"}]}'


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What was inside.

    Args:
        images: in their order; what is not even base64 is the error about it.
        top_k: what it asks for; None when it does not say.
        is_list: whether it is answered with a list though there is one image.
        is_lines: whether it is answered line by line.
    """

    images: Sequence[bytes | RequestError]
    top_k: int | None = None
    is_list: bool = False
    is_lines: bool = False


async def open_envelope(media_type: str, request: web.BaseRequest, body: bytes) -> Opened:
    """Opens a body of one of `wire.ENVELOPE_TYPES`.

    Raises:
        RequestError: it is not what it says, or holds no image.
        TooLarge: more than MAX_IMAGES.
    """
    if media_type == FORM_DATA_TYPE:
        opened = await _form(request, body)
    elif media_type in JSON_LINES_TYPES:
        opened = Opened(images=[_line(line) for line in body.splitlines() if line.strip()], is_lines=True)
    else:
        opened = _document(_json(body))
    if not opened.images:
        raise RequestError("the request holds no image", "send at least one")
    if len(opened.images) > MAX_IMAGES:
        raise TooLarge(f"the request holds {len(opened.images)} images", f"at most {MAX_IMAGES} are accepted at once")
    return opened


def compose(opened: Opened, replies: Sequence[Reply | RequestError]) -> tuple[bytes, str]:
    """The answers to several images as one body, and the engine that computed them, empty when none did."""
    answers: list[dict[str, object]] = []
    model = engine = ""
    for reply in replies:
        if isinstance(reply, RequestError):
            answers.append({"error": reply.message, "hint": reply.hint})
            continue
        engine = reply.headers[ENGINE_HEADER.lower()]
        answer = json.loads(reply.body)
        model = answer.get("model", model)
        answers.append(answer)
    if opened.is_lines:
        return b"".join(_text(answer) for answer in answers), engine
    listed = [{name: value for name, value in answer.items() if name != "model"} for answer in answers]
    return _text({"answers": listed, "model": model}), engine


def _text(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", errors="replace")


async def _form(request: web.BaseRequest, body: bytes) -> Opened:
    """The files of a form, or its fields when none of them is a file, and what it says of top_k."""
    stream = aiohttp.StreamReader(request.protocol, limit=len(body) + 1)
    stream.feed_data(body)
    stream.feed_eof()
    files: list[bytes | RequestError] = []
    fields: list[bytes | RequestError] = []
    top_k: int | None = None
    try:
        async for part in aiohttp.MultipartReader(request.headers, stream):
            if not isinstance(part, aiohttp.BodyPartReader):
                raise ValueError("a form inside a form")
            content = bytes(await part.read(decode=False))
            if part.filename is None and part.name == _TOP_K:
                top_k = parse_top_k(content.decode("ascii", errors="replace"))
                continue
            if content:
                (fields if part.filename is None else files).append(_part(part, content))
            if len(files) + len(fields) > 2 * MAX_IMAGES:
                raise TooLarge("the form has too many parts", f"at most {MAX_IMAGES} images are accepted at once")
    except (ValueError, AssertionError, RuntimeError, aiohttp.ClientError, aiohttp.http.HttpProcessingError) as error:
        raise RequestError("the form cannot be read", "curl -F image=@photo.jpg writes one that can") from error
    return Opened(images=files or fields, top_k=top_k)


def _part(part: aiohttp.BodyPartReader, content: bytes) -> bytes | RequestError:
    """What is in a part of a form: forms of programs that write mail are encoded as mail is."""
    encoding = part.headers.get("Content-Transfer-Encoding", "").strip().lower()
    return _from_base64(content) if encoding == "base64" else content


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError("the body is no JSON", _EXAMPLE) from None


def _document(document: object) -> Opened:
    if not isinstance(document, dict):
        raise RequestError("the JSON is no object", _EXAMPLE)
    top_k = document.get(_TOP_K)
    if top_k is not None:
        top_k = parse_top_k(json.dumps(top_k))
    if "image" in document:
        return Opened(images=[_decoded(document["image"])], top_k=top_k)
    several = document.get("images", document.get("instances"))
    if not isinstance(several, list):
        raise RequestError("the JSON names no image", _EXAMPLE)
    return Opened(images=[_decoded(each) for each in several], top_k=top_k, is_list=True)


def _line(line: bytes) -> bytes | RequestError:
    try:
        opened = _document(_json(line))
    except RequestError as error:
        return error
    return opened.images[0] if len(opened.images) == 1 else RequestError("a line holds one image", _EXAMPLE)


def _decoded(value: object) -> bytes | RequestError:
    """The bytes of one image, which stand alone, or as the value of "b64", "image_bytes" or "image"."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("b64", "image_bytes", "image") if name in value), None)
        if isinstance(value, dict):
            value = value.get("b64")
    if not isinstance(value, str):
        return RequestError("an image is no text of base64", _EXAMPLE)
    if value.startswith("data:"):
        value = value.partition(",")[2]
    return _from_base64(value.encode("ascii", errors="replace"))


def _from_base64(text: bytes) -> bytes | RequestError:
    digits = text.translate(_ALPHABET, _BLANKS).rstrip(b"=")
    try:
        decoded = base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except binascii.Error:
        return RequestError("an image is no base64", _EXAMPLE)
    return decoded or RequestError("an image is empty", _EXAMPLE)
