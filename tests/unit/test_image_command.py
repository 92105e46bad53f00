"""`docker run IMAGE COMMAND`: the program in front of both images' own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "docker" / "command"


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the program as in an image whose own programs are those in `folder`."""
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SAGEMAKER_BASE_DIR": str(folder / "ml")}
    return subprocess.run(
        [sys.executable, "-ISs", COMMAND, *words], env=environment, check=False, capture_output=True, text=True
    )


@pytest.fixture(params=["train", "serve"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """The folder of an image's programs, and the name of its own."""
    program = tmp_path / request.param
    program.write_text('#!/bin/sh\necho "this is $0 $*"\nexit 7\n')
    program.chmod(0o755)
    return tmp_path, request.param


def test_the_images_own_program_is_run_with_its_arguments_and_gives_the_exit_code(image: tuple[Path, str]) -> None:
    folder, own = image
    for words in ([own, "a", "b"], ["sh", "-c", f"exec {own} a b"]):
        done = run(folder, *words)
        assert (done.returncode, done.stdout, done.stderr) == (7, f"this is {folder / own} a b\n", "")
    assert run(folder).stdout == f"this is {folder / own} \n"


def test_the_other_images_command_is_a_sentence_and_the_reason_of_the_failure(image: tuple[Path, str]) -> None:
    folder, own = image
    (folder / "ml" / "output").mkdir(parents=True)
    other = {"train": "serve", "serve": "train"}[own]
    done = run(folder, other)
    assert (done.returncode, done.stdout) == (2, "")
    error, hint = done.stderr.splitlines()
    assert error == f"error: this is the image that {own}s, not one that {other}s"
    assert hint == f"hint: docker run IMAGE {own}"
    assert (folder / "ml" / "output" / "failure").read_text().startswith("this is the image that")


@pytest.mark.parametrize(
    ("word", "code", "sentence"),
    [
        ("trian", 127, "this image has no program 'trian'"),
        ("", 127, "this image has no program ''"),
        ("--lr", 127, "this image has no program '--lr'"),
        ("/opt/nothing/here", 127, "this image has no program '/opt/nothing/here'"),
        ("/etc/passwd/x", 127, "this image has no program"),
        (os.fsdecode(b"\xff"), 127, "this image has no program"),
        ("if", 127, "this image has no program 'if'"),
        ("/etc", 126, "'/etc' cannot be run: Permission denied"),
        ("x" * 5000, 126, "cannot be run: File name too long"),
    ],
)
def test_a_command_that_is_not_there_is_a_sentence_and_a_shells_code(
    image: tuple[Path, str], word: str, code: int, sentence: str
) -> None:
    done = run(image[0], word)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert f"hint: docker run IMAGE {image[1]}" in done.stderr
