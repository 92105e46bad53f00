"""deploy.example.toml, made from the settings' own descriptions: `python deploy.py config --example`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import textwrap
from collections.abc import Mapping

from image_classifier.cli.settings import SEARCH_KEY, SECTIONS, General
from image_classifier.contract.config import Param, Value, format_value, parameters_of, range_words
from image_classifier.contract.search import DEFAULT_SEARCH_SPACE, Categorical, Range

COMMENTS_AT = 28  # column
MAX_LINE = 120
HEAD = """\
# Settings of deploy.py. Copy to deploy.toml and change what you need; every value here is the default.
# A flag wins over the environment (CLASSIFIER_TRAIN_LR=0.02), the environment over this file. Paths are relative to the
# file. `python deploy.py config` shows every value and where it comes from, `config --example` this file.
"""
ABOUT: Mapping[str, str] = {
    "train": "hyperparameters of a training job, and of the trials of a search",
    "tune": "how a search is run",
    SEARCH_KEY: "what is searched: a list of values, or a range; any hyperparameter of [train]",
    "serve": "where the endpoint listens, and what it computes in",
    "predict": "which endpoint is asked, and for how much",
    "sagemaker": 'where jobs and endpoints run with target = "sagemaker": docs/sagemaker.md',
}


def example_file() -> str:
    """The text of deploy.example.toml: every setting with its default, what it means, and what it may be."""
    parts = [HEAD, _settings(General)]
    for section, holder in SECTIONS.items():
        parts.append(_line(f"[{section}]", ABOUT[section]) + _settings(holder))
        if SEARCH_KEY.startswith(f"{section}."):
            ranges = (f"{name} = {_range(spec)}\n" for name, spec in DEFAULT_SEARCH_SPACE.items())
            parts.append(_line(f"[{SEARCH_KEY}]", ABOUT[SEARCH_KEY]) + "".join(ranges))
    return "\n".join(parts)


def _settings(holder: type) -> str:
    """The lines of one holder; a heading and an empty line between settings of different kinds."""
    parts = []
    for heading, group in itertools.groupby(parameters_of(holder), key=lambda known: known.section):
        lines = [_line(f"{known.name} = {_value(known.default)}", _meaning(known)) for known in group]
        parts.append("".join([f"# {heading}\n"] * bool(heading) + lines))
    return "\n".join(parts)


def _line(left: str, comment: str) -> str:
    """With the comment at its right, or above where that would be too long."""
    line = f"{left:<{COMMENTS_AT - 1}} # {comment}"
    if len(line) <= MAX_LINE:
        return f"{line}\n"
    above = textwrap.wrap(comment, MAX_LINE, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join([*above, left]) + "\n"


def _meaning(known: Param) -> str:
    """Its help text, with the choices that the text does not name, and the range."""
    text = known.help
    if not all(re.search(rf"\b{re.escape(choice)}\b", text) for choice in known.choices):
        text += f": {', '.join(known.choices)}"
    limits = range_words(known)
    return f"{text}; {limits}" if limits else text


def _value(value: Value) -> str:
    """As TOML writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return format_value(value).lower()


def _range(spec: Range) -> str:
    if isinstance(spec, Categorical):
        return f"[{', '.join(map(_value, spec.values))}]"
    return f"{{ {', '.join(f'{name} = {_value(value)}' for name, value in dataclasses.asdict(spec).items())} }}"
