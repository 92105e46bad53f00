"""Settings: flag over best.json over environment over deploy.toml over default, each value with its origin.

A setting's dotted key is its place in the file (`train.lr` is `lr` under `[train]`) and, in capitals with underscores,
its environment variable (CLASSIFIER_TRAIN_LR). The search space `[tune.search]` is set in the file only.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.config import (
    NAMED_WEIGHTS,
    Param,
    TrainConfig,
    Value,
    check,
    param,
    parameters_of,
    parse_as,
)
from image_classifier.contract.endpoint import DEFAULT_PORT, MAX_PORT, PRECISIONS
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.files import open_plain
from image_classifier.contract.outputs import parse_json
from image_classifier.contract.paths import path_here
from image_classifier.contract.search import DEFAULT_SEARCH_SPACE, SearchSpace, parse_search_space
from image_classifier.launch.runs import DEFAULT_RUNS_DIR
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.tuning.tune_settings import TuneSettings

FILE_NAME = "deploy.toml"
VARIABLE_PREFIX = "CLASSIFIER_"
TARGETS = ("local", "docker", "sagemaker")
SEARCH_KEY = "tune.search"
PATH_KEYS = ("runs_dir", "data")
S3 = "s3://"  # no path, and named by who needs one: `path_here`
CHECKED_SECTIONS = ("train", "tune", "predict", "sagemaker")  # an unknown variable of one is a mistake, not another's


@dataclass(frozen=True, kw_only=True)
class General:
    """Settings above the first section."""

    target: str = param("local", "where jobs run: local, docker (in the images), sagemaker", choices=TARGETS)
    runs_dir: str = param(DEFAULT_RUNS_DIR, "folder that gets one folder a job")
    data: str = param("data", "folder with CLASS/ or train/CLASS, valid/CLASS, test/CLASS; or a CSV list")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """`[serve]`: where the endpoint listens, and what it computes in."""

    host: str = param("127.0.0.1", "address to listen on")
    port: int = param(DEFAULT_PORT, "port to listen on", low=1, high=MAX_PORT)
    precision: str = param(
        PRECISIONS[0],
        "number format, auto for the fastest that is good enough",
        choices=PRECISIONS,
    )


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """`[predict]`: which endpoint is asked, and for how much."""

    url: str = param("auto", "address of the endpoint, auto for the one that [serve] describes")
    top_k: int = param(5, "labels shown for an image", low=1, high=1000)


SECTIONS: Mapping[str, type] = {
    "train": TrainConfig,
    "tune": TuneSettings,
    "serve": ServeSettings,
    "predict": PredictSettings,
    "sagemaker": SageMakerSettings,
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, and where each value comes from (`origins`: dotted key -> words for a person)."""

    general: General
    train: TrainConfig
    tune: TuneSettings
    serve: ServeSettings
    predict: PredictSettings
    sagemaker: SageMakerSettings
    search: SearchSpace
    origins: Mapping[str, str]

    def items(self) -> Iterator[tuple[str, Any, str]]:
        """Dotted key, value and origin of every setting, in the order of the file."""
        for key in keys():
            section, _, name = key.rpartition(".")
            holder = getattr(self, section or "general")
            yield key, getattr(holder, name), self.origins.get(key, "default")
        space = {name: dataclasses.asdict(spec) for name, spec in self.search.items()}
        yield SEARCH_KEY, space, self.origins.get(SEARCH_KEY, "default")

    @property
    def url(self) -> str:
        """The endpoint that predict asks."""
        if self.predict.url != "auto":
            return self.predict.url
        host = "127.0.0.1" if self.serve.host in {"0.0.0.0", "::"} else self.serve.host  # noqa: S104  # compared only
        return f"http://{host}:{self.serve.port}"

    def given_flags(self) -> frozenset[str]:
        """Names of the hyperparameters that were given as flags."""
        flags = (key for key, origin in self.origins.items() if origin.startswith("flag "))
        return frozenset(key.removeprefix("train.") for key in flags)


def keys() -> dict[str, Param]:
    """Every dotted key with what is known of it."""
    table = {known.name: known for known in parameters_of(General)}
    for section, settings in SECTIONS.items():
        table |= {f"{section}.{known.name}": known for known in parameters_of(settings)}
    return table


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return VARIABLE_PREFIX + key.replace(".", "_").upper()


def load(
    flags: Mapping[str, Value],
    *,
    file: Path | None = None,
    best: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settles every setting.

    Args:
        flags: dotted key -> value, for the flags that were given.
        file: the config file; without it, deploy.toml in the working directory if there is one.
        best: a best.json written by tune.
        environ: the environment, os.environ by default.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, a file that is not TOML.
    """
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}
    search: SearchSpace = DEFAULT_SEARCH_SPACE
    file = file or (Path(FILE_NAME) if Path(FILE_NAME).is_file() else None)
    if file is not None:
        from_file, table = _read_file(file)
        values |= from_file
        origins |= dict.fromkeys(from_file, str(file))
        if table is not None:
            search = _blame(str(file), parse_search_space, table)
            origins[SEARCH_KEY] = str(file)
    from_environment = _read_environment(os.environ if environ is None else environ)
    values |= from_environment
    origins |= {key: f"environment {variable(key)}" for key in from_environment}
    if best is not None:
        from_best = read_best(best)
        values |= from_best
        origins |= dict.fromkeys(from_best, str(best))
    values |= flags
    origins |= {key: f"flag --{key.rpartition('.')[2].replace('_', '-')}" for key in flags}
    path_here(str(values.get("runs_dir", "")))
    parts = {name: _build(cls, name, values) for name, cls in {"general": General, **SECTIONS}.items()}
    return Settings(search=search, origins=origins, **parts)


def read_best(path: Path) -> dict[str, Value]:
    """The hyperparameters of a best.json as dotted keys. Raises ConfigError when the file is not one."""
    try:
        with open_plain(path, "r", encoding="utf-8", errors="replace") as file:
            document = parse_json(file.read())
        texts = {str(name): str(value) for name, value in document["hyperparameters"].items()}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "give the best.json of a tuning run") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} is not a best.json", "give the best.json of a tuning run") from None
    table = keys()
    return {
        f"train.{name}": _blame(str(path), parse_as, _known(f"train.{name}", table, str(path)), text)
        for name, text in texts.items()
    }


def _build(cls: type, section: str, values: Mapping[str, Value]) -> Any:
    prefix = "" if section == "general" else f"{section}."
    names = (known.name for known in parameters_of(cls))
    return cls(**{name: values[prefix + name] for name in names if prefix + name in values})


def _read_file(file: Path) -> tuple[dict[str, Value], Mapping[str, Any] | None]:
    """Dotted key -> value, and the table `[tune.search]` if there is one."""
    try:
        text = file.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}", "see deploy.example.toml") from None
    search: Mapping[str, Any] | None = None
    values: dict[str, Value] = {}
    table = keys()
    for name, item in document.items():
        if name in SECTIONS and not isinstance(item, Mapping):
            raise ConfigError(f"{_place(file, text, name)}: {name} is a section", f"write [{name}] on its own line")
        members = {f"{name}.{key}": value for key, value in item.items()} if name in SECTIONS else {name: item}
        for key, value in members.items():
            place = _place(file, text, key)
            if key == SEARCH_KEY and isinstance(value, Mapping):
                search = value
                continue
            values[key] = _typed(_known(key, table, place), value, place)
    for key in PATH_KEYS:
        if key in values and not str(values[key]).startswith(S3):
            values[key] = str(file.parent / str(values[key]))
    weights = values.get("train.weights", NAMED_WEIGHTS[0])
    if weights not in NAMED_WEIGHTS and not str(weights).startswith(S3):
        values["train.weights"] = str(file.parent / str(weights))
    return values, search


def _typed(known: Param, value: Any, place: str) -> Value:
    if known.type is float and type(value) is int:
        value = float(value)
    _blame(place, check, known, value)
    return value  # type: ignore[no-any-return]  # check has tested it


def _read_environment(environ: Mapping[str, str]) -> dict[str, Value]:
    table = keys()
    by_variable = {variable(key): key for key in table}
    values = {}
    for name, text in environ.items():
        if not name.startswith(VARIABLE_PREFIX) or not text:
            continue
        if name in by_variable:
            key = by_variable[name]
            values[key] = _blame(name, parse_as, table[key], text)
        elif name.startswith(tuple(f"{VARIABLE_PREFIX}{section.upper()}_" for section in CHECKED_SECTIONS)):
            near = difflib.get_close_matches(name, by_variable, n=1)
            raise ConfigError(f"unknown environment variable {name}", f"did you mean {near[0]}?" if near else "")
    return values


def _known(key: str, table: Mapping[str, Param], place: str) -> Param:
    if key in table:
        return table[key]
    section, _, name = key.rpartition(".")
    siblings = {each.rpartition(".")[2]: each for each in table if each.rpartition(".")[0] == section}
    near = difflib.get_close_matches(name, siblings, n=1)
    hint = f"did you mean {near[0]}?" if near else ""
    elsewhere = [each for each in table if each.rpartition(".")[2] == name]
    if not near and elsewhere:
        hint = f"{name} belongs under [{elsewhere[0].rpartition('.')[0]}]"
    where = f"in [{section}]" if section else "above the first section"
    raise ConfigError(
        f"{place}: unknown setting {name!r} {where}", hint or f"known: {', '.join([*siblings, *SECTIONS][:30])}"
    )


def _place(file: Path, text: str, key: str) -> str:
    """`deploy.toml line 7`: where a dotted key stands, or the file alone when it cannot be told."""
    section, _, name = key.rpartition(".")
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            current = header.group(1)
            if current == key:
                return f"{file} line {number}"
        elif current == section and re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[=.]", line):
            return f"{file} line {number}"
    return str(file)


def _blame(place: str, function: Any, *args: Any) -> Any:
    """Calls `function`; a ConfigError it raises gets the place of the value in front."""
    try:
        return function(*args)
    except ConfigError as error:
        raise ConfigError(
            f"{place}: {error.message}", error.hint or "deploy.example.toml shows every setting"
        ) from None
