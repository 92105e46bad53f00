"""Flags made from the settings' own descriptions, and help pages in sections.

A flag's value lands in the command's arguments as `train__lr` for the setting `train.lr`; `given` collects them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from image_classifier.contract.config import (
    Param,
    TrainConfig,
    Value,
    format_value,
    parameters_of,
    parse_as,
    range_words,
)
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.installation import as_typed
from image_classifier.tuning.tune_settings import TuneSettings

SEPARATOR = "__"


class SettingType(click.ParamType[Value]):
    """Reads a setting as `contract.config` does, so that flags, files and jobs agree on what is right."""

    def __init__(self, param: Param) -> None:
        self._param = param
        self.name = param.type.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Value:
        """Raises click's usage error for a wrong value."""
        try:
            return parse_as(self._param, value) if isinstance(value, str) else value
        except ConfigError as error:
            self.fail(error.message, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What a help page shows as the value."""
        if self._param.choices:
            return "|".join(self._param.choices)
        return {int: "INT", float: "FLOAT", bool: "BOOL"}.get(self._param.type, "TEXT")


def setting(section: str, param: Param, heading: str) -> Callable[[Any], Any]:
    """Adds the flag of one setting to a command; `--batch_size` works as `--batch-size` does."""
    name, dest = param.name.replace("_", "-"), SEPARATOR.join(part for part in (section, param.name) if part)
    switch = param.type is bool
    return click.option(
        f"--{name}/--no-{name}" if switch else f"--{name}",
        dest,
        type=None if switch else SettingType(param),
        default=None,
        help=_help(param),
        cls=_option_under(heading),
    )


def settings_of(holder: type, section: str, heading: str, *, without: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Adds the flags of all settings of a dataclass, in its order; those of a section under its heading."""

    def add(command: Any) -> Any:
        for param in reversed(parameters_of(holder)):
            if param.name not in without:
                command = setting(section, param, param.section or heading)(command)
        return command

    return add


def from_searches(command: Any) -> Any:
    """Adds `--from`, the setting `tune.warm_start`: it may be given several times."""
    known = {param.name: param for param in parameters_of(TuneSettings)}["warm_start"]
    return click.option(
        "--from",
        f"tune{SEPARATOR}{known.name}",
        metavar="RUN",
        multiple=True,
        callback=lambda _context, _option, names: ",".join(names) if names else None,
        help="an earlier search to learn from; may be given 5 times",
        cls=_option_under("Search"),
    )(command)


def hyperparameters(*, without: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Adds the flags of the training job's hyperparameters."""
    return settings_of(TrainConfig, "train", "Hyperparameters", without=without)


def given(arguments: Mapping[str, Any], *sections: str) -> dict[str, Value]:
    """Dotted key -> value of the settings among a command's arguments that were given as flags."""
    split = {name: name.partition(SEPARATOR) for name in arguments}
    return {
        f"{section}.{key}": arguments[name]
        for name, (section, found, key) in split.items()
        if found and section in sections and arguments[name] is not None
    }


def _help(param: Param) -> str:
    parts = [f"default {format_value(param.default).lower() if param.type is bool else param.default}"]
    if limits := range_words(param):
        parts.append(limits)
    return f"{param.help}  [{', '.join(parts)}]"


class HeadedOption(click.Option):
    """An option that knows under which heading of the help page it stands."""

    heading = "Options"


def _option_under(title: str) -> type[HeadedOption]:
    return type("HeadedOption", (HeadedOption,), {"heading": title})


class HeadedCommand(click.Command):
    """A command whose help page lists its options under headings, the general ones first."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section a heading."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                sections.setdefault(getattr(param, "heading", "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records, col_max=28)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples as they are."""
        write_examples(self.epilog, formatter)


class StoryGroup(click.Group):
    """A group whose help page lists the commands in the order of `stories`: heading -> names."""

    command_class = HeadedCommand
    stories: Mapping[str, tuple[str, ...]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a person needs them."""
        return [name for names in self.stories.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section a story."""
        width = max(map(len, self.commands))
        for heading, names in self.stories.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), self.commands[name].get_short_help_str(90)) for name in names])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples as they are."""
        write_examples(self.epilog, formatter)


def write_examples(text: str | None, formatter: click.HelpFormatter) -> None:
    """Writes example lines under a heading, without rewrapping them."""
    if text:
        with formatter.section("Examples"):
            for line in as_typed(text).strip().splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n" if line.strip() else "\n")


def of_rules(command: Callable[..., int]) -> Callable[..., int]:
    """Adds what `rules` can be told besides the run."""
    for option in reversed(
        (
            click.option(
                "--only", "names", default="all", metavar="RULES", help="names with commas between  [default all]"
            ),
            click.option(
                "--tensors", is_flag=True, help="judge by the tensors that smdebug saved, not by the job's files"
            ),
            click.option(
                "--explain", metavar="NAME", default="", help="say what a rule computes, shows and advises; no run"
            ),
            click.option(
                "--exit-code", is_flag=True, help="exit with 3 when a rule fired, else with 4 when one lacked data"
            ),
        )
    ):
        command = option(command)
    return command
