"""The endpoint, described for programs: what GET /openapi.json answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from image_classifier.contract import wire

PATHS: Mapping[str, tuple[str, ...]] = {
    "/invocations": ("POST",),
    "/ping": ("GET", "HEAD"),
    "/execution-parameters": ("GET", "HEAD"),
    "/openapi.json": ("GET", "HEAD"),
}
"""What there is, and the methods of each."""

SCHEMA_VERSION = "1.2.0"  # of what is sent and answered: semantic versioning


def description(model: str) -> dict[str, object]:
    """The OpenAPI 3.1 document of an endpoint that serves `model`, a fingerprint."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image classifier",
            "version": SCHEMA_VERSION,
            "description": f"Answers images with the most probable classes of model {model}.",
        },
        "paths": {
            "/invocations": {"post": _invocations()},
            "/ping": {"get": _health()},
            "/execution-parameters": {"get": _plain("What batch transform may ask for at once", _LIMITS)},
            "/openapi.json": {"get": _plain("This description", {"type": "object"})},
        },
    }


def _invocations() -> dict[str, object]:
    body = {"schema": {"type": "string", "format": "binary", "minLength": 1, "maxLength": wire.MAX_BODY_BYTES}}
    top_k = {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": wire.DEFAULT_TOP_K}
    statuses = (*wire.STATUSES,)
    return {
        "summary": "Classify one image",
        "operationId": "invocations",
        "parameters": [
            {
                "name": wire.TOP_K_HEADER,
                "in": "header",
                "required": False,
                "description": "How many classes to answer with.",
                "schema": top_k,
            },
            {
                "name": wire.REQUEST_ID_HEADER,
                "in": "header",
                "required": False,
                "description": "A name of the client's for this request; the answer and the log repeat it.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:=/+-]{1,128}$"},
            },
        ],
        "requestBody": {
            "required": True,
            "description": "The bytes of one image, a form of files, or images as base64 in JSON.",
            "content": dict.fromkeys(wire.REQUEST_TYPES, body)
            | {wire.JSON_TYPE: {"schema": _ASKED}, wire.FORM_DATA_TYPE: {"schema": _FORM}}
            | _LINES,
        },
        "responses": {"200": _answer()} | {str(status): _error(wire.STATUSES[status]) for status in statuses},
    }


def _answer() -> dict[str, object]:
    return {
        "description": "The most probable classes, the best first; for several images, in their order.",
        "headers": _HEADERS,
        "content": {
            wire.JSON_TYPE: {"schema": {"anyOf": [_ANSWER, _ANSWERS]}},
            **_LINES,
            wire.CSV_TYPE: {"schema": {"type": "string", "description": "Lines of label,probability."}},
        },
    }


def _health() -> dict[str, object]:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    content = {wire.JSON_TYPE: {"schema": schema}}
    return {
        "summary": "Whether a worker can answer",
        "responses": {
            "200": {"description": "Yes.", "headers": _HEADERS, "content": content},
            "503": {"description": "No, or the endpoint is stopping.", "headers": _HEADERS, "content": content},
        },
    }


def _plain(summary: str, schema: object) -> dict[str, object]:
    content = {wire.JSON_TYPE: {"schema": schema}}
    return {"summary": summary, "responses": {"200": {"description": summary, "headers": _HEADERS, "content": content}}}


def _error(meaning: str) -> dict[str, object]:
    return {"description": meaning, "headers": _HEADERS, "content": {wire.JSON_TYPE: {"schema": _ERROR}}}


_LINES = {name: {"schema": {"type": "string"}} for name in wire.JSON_LINES_TYPES}
_HEADERS = {wire.REQUEST_ID_HEADER: {"description": "The request's name.", "schema": {"type": "string"}}}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string", "minLength": 1}, "hint": {"type": "string"}},
    "required": ["error", "hint"],
    "additionalProperties": False,
}
_ANSWER: Any = {
    "type": "object",
    "properties": {
        "predictions": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "string"},
                    "probability": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["label", "probability"],
                "additionalProperties": False,
            },
        },
        "abstain": {
            "const": True,
            "description": "Only where the model was trained to abstain from answers as unsure as this one.",
        },
        "model": {"type": "string"},
    },
    "required": ["predictions", "model"],
    "additionalProperties": False,
}
_ANSWERS = {
    "type": "object",
    "properties": {
        "answers": {
            "type": "array",
            "minItems": 1,
            "maxItems": wire.MAX_IMAGES,
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {name: _ANSWER["properties"][name] for name in ("predictions", "abstain")},
                        "required": ["predictions"],
                        "additionalProperties": False,
                    },
                    _ERROR,
                ]
            },
        },
        "model": {"type": "string"},
    },
    "required": ["answers", "model"],
    "additionalProperties": False,
}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_TOP_K = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
_SEVERAL = {"type": "array", "minItems": 1, "maxItems": wire.MAX_IMAGES}
_ASKED = {
    "anyOf": [
        {"type": "object", "properties": {"image": _BASE64, "top_k": _TOP_K}, "required": ["image"]},
        {
            "type": "object",
            "properties": {"images": _SEVERAL | {"items": _BASE64}, "top_k": _TOP_K},
            "required": ["images"],
        },
        {
            "type": "object",
            "properties": {
                "instances": _SEVERAL
                | {"items": {"type": "object", "properties": {"b64": _BASE64}, "required": ["b64"]}},
                "top_k": _TOP_K,
            },
            "required": ["instances"],
        },
    ]
}
_FORM = {
    "type": "object",
    "properties": {"image": {"type": "string", "format": "binary"}, "top_k": _TOP_K},
    "required": ["image"],
}
_LIMITS = {
    "type": "object",
    "properties": {
        "MaxConcurrentTransforms": {"type": "integer", "minimum": 1},
        "BatchStrategy": {"const": "SINGLE_RECORD"},
        "MaxPayloadInMB": {"type": "integer", "minimum": 1},
    },
    "required": ["MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"],
}
