"""What goes over the wire between a client and the endpoint.

POST /invocations with the bytes of one image. The body of a good answer, as JSON:

    {"predictions": [{"label": "daisy", "probability": 0.93}, ...], "model": "3f2a..."}

and as CSV the lines `label,probability` without a header. Anything else answers with

    {"error": "the file is truncated", "hint": "replace the file with an intact copy"}
"""

from __future__ import annotations

from image_classifier.contract.image_formats import MEDIA_TYPES

JSON_TYPE = "application/json"
CSV_TYPE = "text/csv"
RESPONSE_TYPES: tuple[str, ...] = (JSON_TYPE, CSV_TYPE)  # the first is the default

GENERIC_TYPES: tuple[str, ...] = ("application/x-image", "application/octet-stream")
REQUEST_TYPES: tuple[str, ...] = (*MEDIA_TYPES, *GENERIC_TYPES)

TOP_K_HEADER = "X-Top-K"
CUSTOM_ATTRIBUTES_HEADER = "X-Amzn-SageMaker-Custom-Attributes"  # `top_k=3`, comma-separated pairs
TOP_K_ATTRIBUTE = "top_k"
DEFAULT_TOP_K = 5

MAX_BODY_BYTES = 6 * 1024 * 1024  # InvokeEndpoint's limit; a local server could take more, but must behave the same
