"""What goes over the wire between a client and the endpoint.

POST /invocations with the bytes of one image. The body of a good answer, as JSON:

    {"predictions": [{"label": "daisy", "probability": 0.93}, ...], "model": "3f2a..."}

where `"abstain": true` stands before the model if the model was trained to abstain from answers as unsure as this one.
That is one line, and so the answer to who accepts lines of JSON; and as CSV the lines `label,probability` without a
header. Anything else answers with

    {"error": "the file is truncated", "hint": "replace the file with an intact copy"}

Several images in one body (`serving/envelopes.py`) are answered with `{"answers": [...], "model": "3f2a..."}`, lines of
JSON with lines of JSON; each of these answers is one of the two objects above. Every answer carries the request's id,
the client's own or a new one, which the server's log has, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from image_classifier.contract.image_formats import MEDIA_TYPES

JSON_TYPE = "application/json"
CSV_TYPE = "text/csv"
JSON_LINES_TYPES: tuple[str, ...] = (
    "application/jsonlines", "application/x-jsonlines", "application/jsonl", "application/x-ndjson",
)  # fmt: skip
RESPONSE_TYPES: tuple[str, ...] = (JSON_TYPE, CSV_TYPE, *JSON_LINES_TYPES)  # the first is the default

GENERIC_TYPES: tuple[str, ...] = ("application/x-image", "application/octet-stream")
REQUEST_TYPES: tuple[str, ...] = (*MEDIA_TYPES, *GENERIC_TYPES)  # those to name; the bytes decide for any image/*
FORM_DATA_TYPE = "multipart/form-data"
ENVELOPE_TYPES: tuple[str, ...] = (JSON_TYPE, FORM_DATA_TYPE, *JSON_LINES_TYPES)  # bodies that hold images
MAX_IMAGES = 32  # in one body
FORM_TYPE = "application/x-www-form-urlencoded"  # what curl says of any bytes when it is told nothing

REQUEST_ID_HEADER = "X-Request-Id"
TOP_K_HEADER = "X-Top-K"
CUSTOM_ATTRIBUTES_HEADER = "X-Amzn-SageMaker-Custom-Attributes"  # `top_k=3`, comma-separated pairs
TOP_K_ATTRIBUTE = "top_k"
DEFAULT_TOP_K = 5

ENGINE_HEADER = "X-Engine"  # of every answer: what computed it, e.g. `openvino/int8; forward_ms=7.1`

MAX_BODY_BYTES = 6 * 1024 * 1024  # InvokeEndpoint's limit; a local server could take more, but must behave the same

STATUSES: Mapping[int, str] = {
    400: "The request has no body, its body is no image that can be read, top_k is no number, or it is not HTTP.",
    404: "There is nothing at this path.",
    405: "The path has other methods: the header Allow names them.",
    406: "The client accepts neither JSON, nor CSV, nor lines of JSON.",
    408: "The client did not send its whole request in time.",
    413: "The body, or the picture inside it, is too large.",
    415: "The content type is not an image's, or the body is compressed.",
    417: "The client expects something other than 100-continue.",
    431: "The request line or a header is too long, or there are too many headers.",
    500: "The fault is the endpoint's; its log says more under the request's id.",
    503: "Not now: too many requests, no worker alive, or the endpoint is stopping. The header Retry-After says when.",
    504: "The model did not answer in time.",
}
"""Every status but 200 that the endpoint answers with, and what it means. All of them carry `error` and `hint`."""
