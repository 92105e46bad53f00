"""Between HTTP and the classifier: what a request asks for, and how the answer and every error are written.

Knows nothing of the model server; headers come in as a mapping, bodies go out as bytes.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from image_classifier.contract.errors import NotAcceptable, RequestError, TooLarge, Unanswered, UnsupportedMedia
from image_classifier.contract.image_formats import begins_as_image, one_of
from image_classifier.contract.wire import (
    CSV_TYPE,
    CUSTOM_ATTRIBUTES_HEADER,
    DEFAULT_TOP_K,
    FORM_TYPE,
    GENERIC_TYPES,
    JSON_LINES_TYPES,
    JSON_TYPE,
    MAX_BODY_BYTES,
    REQUEST_TYPES,
    RESPONSE_TYPES,
    TOP_K_ATTRIBUTE,
    TOP_K_HEADER,
)

Ranking = Sequence[tuple[str, float]]
"""(label, probability) pairs, the most probable first."""

_MAX_TOP_K_DIGITS = 9  # int() of a text with thousands of digits is slow, and no model has a billion classes


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client wants to know: about `image`, the `top_k` best classes, written as `response_type`."""

    image: bytes
    top_k: int
    response_type: str


@dataclass(frozen=True, kw_only=True)
class Response:
    """A complete answer."""

    status: int
    content_type: str
    body: bytes

    @property
    def phrase(self) -> str:
        """The reason phrase: fixed ASCII, because the model server counts characters where it sends bytes."""
        return HTTPStatus(self.status).phrase


def parse_request(headers: Mapping[str, str], body: object) -> Request:
    """Reads one request; header names in any case.

    Args:
        body: the bytes; None when the model server found no plain body.

    Raises:
        UnsupportedMedia: the content type is not an image's. A missing one is taken for bytes of any kind, and what
            curl says when it is told nothing for an image if the bytes begin as one.
        NotAcceptable: the client accepts none of RESPONSE_TYPES.
        TooLarge: more than MAX_BODY_BYTES.
        RequestError: no body, or a top_k that is not a whole number of 1 or more.
    """
    return make_request(*parse_headers(headers), body)


def make_request(media_type: str, response_type: str, top_k: int, body: object) -> Request:
    """The same of headers that are parsed already. Raises as `parse_request`."""
    if not isinstance(body, (bytes, bytearray)) or not body:
        raise RequestError("the request has no body", "send the bytes of one image")
    check_length(len(body))
    if media_type == FORM_TYPE and not begins_as_image(bytes(body[:16])):
        raise _unsupported(media_type)
    return Request(image=bytes(body), top_k=top_k, response_type=response_type)


def media_type_of(headers: Mapping[str, str]) -> str:
    """The content type without its parameters, in lower case; empty when there is none. Header names in any case."""
    given = next((value for name, value in headers.items() if name.lower() == "content-type"), "")
    return given.split(";", 1)[0].strip().lower()


def parse_headers(headers: Mapping[str, str], envelopes: Sequence[str] = ()) -> tuple[str, str, int]:
    """(media type, response type, top_k): all that can be said before the body is there. Raises as `parse_request`.

    Args:
        envelopes: media types that are accepted besides those of images.
    """
    media_type = media_type_of(headers)
    headers = _joined(headers)
    if media_type not in envelopes and not _may_be_image(media_type):
        raise _unsupported(media_type)
    lines = media_type in envelopes and media_type in JSON_LINES_TYPES  # which are answered as they came
    return media_type, media_type if lines else _negotiate(headers.get("accept", "")), _top_k(headers)


def _joined(headers: Mapping[str, str]) -> dict[str, str]:
    """By name in lower case; a header that is there twice is a list with a comma between (RFC 9110, 5.3)."""
    joined: dict[str, str] = {}
    for given, value in headers.items():
        name = given.lower()
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def is_top_k_given(headers: Mapping[str, str]) -> bool:
    """Whether the headers say how many classes are wanted."""
    given = {name.lower(): value for name, value in headers.items()}
    return TOP_K_HEADER.lower() in given or TOP_K_ATTRIBUTE in given.get(CUSTOM_ATTRIBUTES_HEADER.lower(), "").lower()


def check_length(num_bytes: int) -> None:
    """Raises TooLarge when a body of so many bytes is not accepted."""
    if num_bytes > MAX_BODY_BYTES:
        limit = MAX_BODY_BYTES // 1024**2
        raise TooLarge(f"the body has {num_bytes} bytes", f"at most {limit} MiB are accepted: send a smaller image")


def encode(ranking: Ranking, *, model: str, response_type: str, abstain: bool = False) -> Response:
    """The answer to a good request; CSV has no place for more than the ranking.

    Args:
        model: its fingerprint.
        abstain: the model is not sure enough to answer.

    Raises:
        ValueError: a probability is not finite.
    """
    if not all(math.isfinite(p) for _, p in ranking):
        raise ValueError("a probability is not a number")
    if response_type == CSV_TYPE:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows((label, f"{p:.6f}") for label, p in ranking)
        return Response(status=200, content_type=f"{CSV_TYPE}; charset=utf-8", body=text.getvalue().encode())
    predictions = [{"label": label, "probability": round(p, 6)} for label, p in ranking]
    unsure = {"abstain": True} if abstain else {}
    body = _json_bytes({"predictions": predictions, **unsure, "model": model})  # one line
    return Response(status=200, content_type=response_type, body=body)


def encode_error(error: RequestError | Unanswered) -> Response:
    """The answer to a request that is wrong, or cannot be answered; always JSON."""
    return _error(error.http_status, error.message, error.hint)


def encode_internal_error(request_id: str) -> Response:
    """The answer when the fault is ours; the log has the cause beside the same id."""
    return _error(500, "internal error", f"the server's log tells more: look for {request_id}")


def _error(status: int, message: str, hint: str) -> Response:
    return Response(status=status, content_type=JSON_TYPE, body=_json_bytes({"error": message, "hint": hint}))


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", errors="replace")


def _may_be_image(media_type: str) -> bool:
    kind, _, subtype = media_type.partition("/")
    if kind == "image":
        return bool(subtype) and subtype.isascii()
    return not media_type or media_type in (*GENERIC_TYPES, FORM_TYPE)


def _unsupported(media_type: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"the content type {media_type[:80]!r} is not supported", f"send {one_of(REQUEST_TYPES)}")


def _negotiate(accept: str) -> str:
    """The offered type the client likes best: by q-value, then by how exactly it was named (RFC 9110, 12.5.1)."""
    if not accept.strip():
        return RESPONSE_TYPES[0]
    ranges = [_parse_range(part) for part in accept.split(",") if part.strip()]
    best = max(RESPONSE_TYPES, key=lambda offered: _quality(offered, ranges))  # the first of equals
    if _quality(best, ranges)[0] <= 0:
        raise NotAcceptable(f"cannot answer with {accept[:80]!r}", f"accept {one_of(RESPONSE_TYPES)}")
    return best


def _parse_range(text: str) -> tuple[str, float]:
    """`text/csv; charset=utf-8; q=0.5` -> ("text/csv", 0.5). A q that is no number counts as 0."""
    media_range, *parameters = (part.strip().lower() for part in text.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return media_range, min(float(value), 1.0)
            except ValueError:
                return media_range, 0.0
    return media_range, 1.0


def _quality(offered: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """(q-value, exactness 0..2) of the most exact range that covers `offered`; (0, -1) when none does."""
    patterns = ("*/*", f"{offered.split('/', maxsplit=1)[0]}/*", offered)
    matches = [(patterns.index(media_range), q) for media_range, q in ranges if media_range in patterns]
    exactness, q = max(matches, default=(-1, 0.0))
    return q, exactness


def _top_k(headers: Mapping[str, str]) -> int:
    text = headers.get(TOP_K_HEADER.lower())
    if text is None:
        pairs = (pair.partition("=") for pair in headers.get(CUSTOM_ATTRIBUTES_HEADER.lower(), "").split(","))
        text = next((value for name, _, value in pairs if name.strip().lower() == TOP_K_ATTRIBUTE), None)
    if text is None:
        return DEFAULT_TOP_K
    return parse_top_k(text)


def parse_top_k(text: str) -> int:
    """`"3"` -> 3. Raises RequestError for anything but a whole number of 1 or more."""
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _MAX_TOP_K_DIGITS and int(digits) > 0):
        raise RequestError(f"top_k must be a whole number of 1 or more, not {text[:40]!r}")
    return int(digits)
