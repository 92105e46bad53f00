"""What surrounds a command: its standard streams, its environment, the words it is given. Odd ones are a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from image_classifier.cli.main import main
from image_classifier.launch import local
from image_classifier.launch.process import Interrupts, Job, follow
from image_classifier.launch.runs import create_run
from image_classifier.serving import entry

DEPLOY = Path(__file__).parents[2] / "deploy.py"


def deploy(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `deploy.py WORDS` in a shell, so that the words can close and redirect streams."""
    command = f"{sys.executable} {DEPLOY} {words}"
    env = os.environ | environment
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-", "<&-"])
@pytest.mark.parametrize("words", ["status", "config --json", "--help"])
def test_a_closed_stream_is_no_failure(words: str, streams: str, tmp_path: Path) -> None:
    done = deploy(f"{words} {streams}", tmp_path)
    assert (done.returncode, "defect" in done.stdout + done.stderr) == (0, False), done.stderr


def test_what_a_job_prints_does_not_land_in_a_file_when_standard_output_is_closed(tmp_path: Path) -> None:
    (tmp_path / "print.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(DEPLOY.parent / 'code')!r})\n"
        "from image_classifier.cli import main\n"
        "main._open_closed_streams()\n"
        "import os\n"
        "file = open('kept', 'w')\n"
        "os.system('echo lost')\n"
        "file.write('kept')\n"
    )
    subprocess.run(["sh", "-c", f"{sys.executable} print.py >&-"], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONWARNINGS": "error"},
        {"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": "/nowhere"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"},
        {"HOME": "/nowhere/at/all", "TERM": "dumb", "COLUMNS": "1"},
    ],
    ids="_".join,
)
def test_a_command_works_in_any_environment(environment: dict[str, str], tmp_path: Path) -> None:
    create_run(tmp_path / "runs", "train")
    (tmp_path / "data" / "train" / "caf\u00e9\u202e").mkdir(parents=True)
    for words in ("status", "config", "check"):
        done = deploy(words, tmp_path, **environment)
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert "defect" not in done.stderr, done.stderr
        assert "\u202e" not in done.stdout + done.stderr


def test_a_job_gets_nothing_that_was_meant_for_our_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "PYTHONWARNINGS": "error",
        "PYTHONOPTIMIZE": "2",
        "PYTHONINSPECT": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONIOENCODING": "ascii:strict",
        "LC_ALL": "C",
        "SM_CHANNEL_TRAIN": "/other",
        "MINE": "kept",
    }.items():
        monkeypatch.setenv(name, value)
    run = create_run(tmp_path, "train")
    code = (
        "import os, sys, warnings; warnings.warn('only said'); assert_ = __debug__; "
        "print(assert_, os.environ['MINE'], 'SM_CHANNEL_TRAIN' in os.environ, '\\u00e9\\udce9')"
    )
    with (
        Interrupts() as interrupts,
        Job.start([sys.executable, "-c", code], env=local._environment(run), cwd=tmp_path, log=run.log) as job,
    ):
        lines: list[str] = []
        status = follow(job, lines.append, interrupts)
    assert (status, lines[-1]) == (0, "True kept False \u00e9\\udce9")


@pytest.mark.parametrize(
    "words",
    [
        "check s3://b/p",
        "train --data s3://b/p",
        "tune --data s3://b/p",
        "train --data . --weights s3://b/p",
        "train --best s3://b/p",
        "train --resume s3://b/p",
        "--runs-dir s3://b/p status",
        "--runs-dir s3://b/p train",
        "--target sagemaker train --data s3://b/p --dry-run",
        "serve s3://b/p",
        "predict s3://b/p",
        "logs s3://b/p",
        "status S3://b/p",
        "sample-data s3://b/p",
    ],
)
def test_an_address_of_s3_is_no_path(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) in (1, 2)
    assert "error: s3://b/p is not on this machine\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["data", "runs_dir", "weights"])
def test_an_address_of_s3_in_the_settings_file_is_named_as_it_was_written(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    section = "[train]\n" if key == "weights" else ""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "deploy.toml").write_text(f'{section}{key} = "s3://b/p"\n')
    assert main(["--config", "other/deploy.toml", "train"]) in (1, 2)
    assert "error: s3://b/p is not on this machine\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a,b", "a=b", "a b", "a#b", "a\\b", "a\nb", "caf\u00e9", "caf\udce9", "x" * 80])
def test_the_server_works_in_a_folder_whose_name_its_settings_can_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    assert entry._temporary() == "/tmp"


def test_runs_below_a_colon_are_refused_before_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--runs-dir", "a:b", "train", "--data", "data"]) in (1, 2)
    assert "holds a colon" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "a:b").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a:b", target_is_directory=True)  # which hides it from nobody
    assert main(["--runs-dir", "link", "train", "--data", "data"]) in (1, 2)
    assert "holds a colon" in capsys.readouterr().err
