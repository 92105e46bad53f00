"""Setting up the environment: each thing that is missing is one sentence and a hint, before anything is downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "requirements" / "setup.sh"


def program(folder: Path, name: str, text: str) -> Path:
    """A program of that name in `folder`, which is put before PATH."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def setup(tmp_path: Path, python: str = "python3") -> list[str]:
    """The lines that a setup which must fail says."""
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    venv = tmp_path / "venv"
    done = subprocess.run(
        [SCRIPT, str(venv), python], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert not venv.exists()
    return done.stderr.splitlines()


def fake_python(folder: Path, fails_at: str) -> None:
    """This Python under the name python3, which fails where its code holds a word."""
    program(folder, "python3", f'[[ "$2" == *{fails_at}* ]] && exit 1\nexec {sys.executable} "$@"')


def test_no_python_at_all(tmp_path: Path) -> None:
    assert setup(tmp_path, "python9.99") == [
        "error: there is no python9.99 on this machine",
        "hint: install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python3.12",
    ]


@pytest.mark.parametrize("version", ["2.7", "3.10", "3.14"])
def test_a_python_that_the_packages_do_not_run_on(tmp_path: Path, version: str) -> None:
    program(tmp_path, "python3", f"echo {version}")
    assert setup(tmp_path) == [
        f"error: python3 is Python {version}, and the packages run on 3.11, 3.12 and 3.13",
        "hint: name another one: make PYTHON=/path/to/python3.12",
    ]


@pytest.mark.parametrize(
    ("word", "sentence", "package"),
    [
        ("ensurepip", "python3 has no venv module", "-venv"),
        ("sysconfig", "the C headers of python3 are missing", "-dev"),
    ],
)
def test_a_python_without_a_part_names_the_package_that_has_it(
    tmp_path: Path, word: str, sentence: str, package: str
) -> None:
    fake_python(tmp_path, word)
    error, hint = setup(tmp_path)
    assert sentence in error
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert hint == f"hint: on Debian and Ubuntu: apt-get install python{version}{package}"


def test_a_disk_without_room(tmp_path: Path) -> None:
    program(tmp_path, "df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/x 9 9 2000000"')
    assert setup(tmp_path, sys.executable)[0].startswith("error: only 2 GB are free in ")
