"""Setting up the environment: each thing that is missing is one sentence and a hint, before anything is downloaded."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
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


def tiny_wheel(folder: Path) -> str:
    """A package in `folder`; its line for a lock."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    about = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return f"tiny==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.mark.parametrize("is_there", [True, False])
def test_it_names_what_it_installs_and_how_it_ended(tmp_path: Path, is_there: bool) -> None:
    place = tmp_path / "checkout" / "requirements"
    place.mkdir(parents=True)
    shutil.copy2(SCRIPT, place)
    line = tiny_wheel(tmp_path)
    (place / "dev.txt").write_text(f"--no-index\n--find-links {tmp_path if is_there else place}\n{line}")
    program(tmp_path, "df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/x 9 9 90000000"')
    done = subprocess.run(
        [place / "setup.sh", "venv", sys.executable],
        env=os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = done.stdout.splitlines()
    assert said[0] == "setting up venv from requirements/dev.txt: 1 packages, 7 GB, a few minutes, once"
    if is_there:
        assert done.returncode == 0, done.stderr
        assert said[1:3] == ["  tiny-1.0-py3-none-any.whl", "unpacking them, which takes a while"]
        assert re.fullmatch(r"venv is set up: \d+ MB, \d+ s", said[3])
    else:
        assert done.returncode == 1
        assert "tiny" in done.stderr
        assert "error: the packages could not be installed, for the reason above" in done.stderr


def test_a_disk_without_room(tmp_path: Path) -> None:
    program(tmp_path, "df", 'echo "Filesystem 1024-blocks Used Available"; echo "/dev/x 9 9 2000000"')
    assert setup(tmp_path, sys.executable)[0].startswith("error: only 2 GB are free in ")
