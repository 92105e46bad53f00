"""The command line's manners: help, exit codes, what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from image_classifier.cli.answer_commands import app
from image_classifier.cli.main import main
from image_classifier.contract.config import parameters
from image_classifier.contract.endpoint import MAX_PORT
from image_classifier.contract.machine import free_port
from image_classifier.launch.runs import Status, create_run
from image_classifier.vision.sample_data import make_sample_data

DEPLOY = Path(__file__).parents[2] / "deploy.py"
HEAVY = {"torch", "boto3", "botocore", "sagemaker", "optuna", "PIL", "numpy", "rich", "urllib3"}


def listen(listener: socket.socket) -> int:
    """Takes a port of the range that the model server can use."""
    for port in range(20_000 + os.getpid() % 10_000, MAX_PORT):
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        listener.listen()
        return port
    raise OSError("no free port found")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_needs_nothing_heavy() -> None:
    code = f"""
import runpy, sys
sys.argv = ["deploy.py", "--help"]
try:
    runpy.run_path({str(DEPLOY)!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "From images to predictions" in done.stdout
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())


def test_help_tells_every_hyperparameter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    page = capsys.readouterr().out
    for param in parameters():
        assert f"--{param.name.replace('_', '-')}" in page
    assert "1e-08 to 10" in page
    assert "sgd|adamw" in page


@pytest.mark.parametrize("command", app.commands)
def test_every_command_has_a_help_page_and_a_line_in_the_list(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-h"]) == 0
    assert f"Usage: deploy.py {command}" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert re.search(rf"^  {command} +\S", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: No such command 'trian'"),
        (["train", "--lr", "fast"], "error: Invalid value for '--lr': lr must be a number, not 'fast'"),
        (["train", "--lr", "11"], "lr must lie in 1e-08 .. 10, not 11"),
        (["train", "--optimizer", "adam"], "optimizer must be one of sgd, adamw, not 'adam'"),
        (["train", "--runs-dir", "x"], "hint: --runs-dir stands before the command"),
        (["train", "--resume", "x", "--lr", "0.1"], "goes on with the settings it was started with"),
        (["predict"], "error: Missing argument"),
        (["--config", "no.toml", "config"], "error: cannot read no.toml"),
        (["status", "nothing"], "error: there is no run 'nothing' in runs"),
        (["serve"], "error: there is no finished train run in runs"),
        (["train", "--warmup-epochs", "3", "--epochs", "2"], "warmup_epochs (3) is longer than the 2 epochs"),
    ],
)
def test_wrong_usage_is_a_sentence_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["train", "tune", "serve"])
def test_docker_target_without_docker_is_answered(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["--target", "docker", command]) == 1
    assert "error: there is no docker program on this machine" in capsys.readouterr().err


def test_flags_take_dashes_and_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--batch-size", "--batch_size"):
        assert main(["train", "--data", "none", flag, "8"]) == 1
        err = capsys.readouterr().err
        assert "batch_size = 8  (flag --batch-size)" in err
        assert "error: there is no data folder none" in err


def test_config_prints_an_example_of_a_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--example"]) == 0
    (tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert main(["--config", str(tmp_path / "mine.toml"), "config", "--json"]) == 0


def test_config_shows_where_each_value_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("deploy.toml").write_text("[train]\nlr = 0.5\n")
    monkeypatch.setenv("CLASSIFIER_SERVE_PORT", "9999")
    assert main(["--runs-dir", "there", "config", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["train.lr"] == {"value": 0.5, "origin": "deploy.toml"}
    assert shown["serve.port"] == {"value": 9999, "origin": "environment CLASSIFIER_SERVE_PORT"}
    assert shown["runs_dir"] == {"value": "there", "origin": "flag --runs-dir"}
    assert main(["config"]) == 0
    assert "train.lr\t0.5\tdeploy.toml" in capsys.readouterr().out.splitlines()


def test_check_counts_and_names_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    make_sample_data(Path("data"), num_classes=2, train_per_class=3, valid_per_class=1, test_per_class=0, size=32)
    assert main(["check", "data"]) == 0
    assert "all\t6\t2" in capsys.readouterr().out
    broken = next(Path("data/train").glob("*/*.jpg"))
    broken.write_bytes(broken.read_bytes()[:200])
    assert main(["check", "data"]) == 1
    err = capsys.readouterr().err
    assert "error:" in err
    assert broken.name in err
    assert main(["check", "data", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_unusable_data_stops_before_a_run_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty/train").mkdir(parents=True)
    assert main(["train", "--data", "empty"]) == 1
    assert "error:" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_full_disk_is_seen_before_a_run_is_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    make_sample_data(Path("data"), num_classes=2, train_per_class=3, valid_per_class=1, test_per_class=0, size=32)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    assert main(["train", "--data", "data", "--weights", "none"]) == 1
    assert "error: only 0.0 GB are free" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_port_in_use_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.tar.gz").touch()
    with socket.socket() as taken:
        port = listen(taken)
        assert main(["serve", "model.tar.gz", "--port", str(port)]) == 1
    assert f"error: port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_damaged_archive_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.tar.gz").write_bytes(b"\x1f\x8b\x08 and no more")
    with socket.socket() as free:
        port = listen(free)
    assert main(["serve", "model.tar.gz", "--port", str(port)]) == 1
    assert "error:" in capsys.readouterr().err
    assert main(["status", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["kind"], run["status"]) == ("serve", "Failed")


def test_status_and_logs_show_the_newest_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "no runs yet" in capsys.readouterr().err
    run = create_run(Path("runs"), "train", config={"lr": "0.5", "epochs": "10"})
    run.log.parent.mkdir()
    run.log.write_text("one\ntwo\n")
    run.end(Status.FAILED, exit_code=1, failure="it broke")
    assert main(["status"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t") == [run.name, "train", "Failed", "0 s", "it broke"]
    assert main(["status", run.name]) == 0
    out = capsys.readouterr().out
    assert "failure\tit broke" in out
    assert "hyperparameters\tlr=0.5\n" in out  # those that differ from their defaults
    assert main(["logs", "-f"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    (run.path / "job.json").write_text("{")
    assert main(["status"]) == 0
    assert "Damaged" in capsys.readouterr().out


def test_unforeseen_error_is_no_traceback_without_debug(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import image_classifier.launch.runs as runs

    def defect(path: Path) -> None:
        raise RuntimeError("impossible")

    monkeypatch.setattr(runs, "list_runs", defect)
    assert main(["status"]) == 1
    err = capsys.readouterr().err
    assert "error: RuntimeError: impossible" in err
    assert "Traceback" not in err
    assert main(["--debug", "status"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} {DEPLOY} config | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("setting\t")
    assert done.stderr == ""


def test_no_command_is_answered_with_the_help_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "From images to predictions" in out
    assert err == ""


def test_help_tells_arguments_from_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    page = capsys.readouterr().out
    assert page.count("[MODEL|RUN]  model.tar.gz, or a run") == 1
    assert page.index("arguments:") < page.index("[MODEL|RUN]  model.tar.gz, or a run") < page.index("Options:")


def test_a_name_that_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    make_sample_data(tmp_path / "data", num_classes=2, train_per_class=2, valid_per_class=1, test_per_class=1, size=32)
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / split / "bricks").rename(tmp_path / "data" / split / "日本")
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, str(DEPLOY), "check", "data"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "\\u65e5\\u672c\t2\t1\t1" in done.stdout, done.stderr


def test_a_python_without_the_packages_is_told_which_has_them() -> None:
    done = subprocess.run([sys.executable, "-S", str(DEPLOY), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "hint: `make setup`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--rules", "--stop-on"])
def test_a_rule_that_does_not_exist_is_refused_before_a_job_is_made(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_sample_data(Path("data"), num_classes=2, train_per_class=2, valid_per_class=1, test_per_class=1, size=32)
    assert main(["train", flag, "Overfitt", "--weights", "none"]) == 2
    assert "hint: did you mean Overfit?" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_demo_asks_for_its_port_first(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        port = listen(listener)
        assert main(["demo", "--port", str(port)]) == 1
        assert free_port("127.0.0.1", port) > port
    assert f"error: port {port} on 127.0.0.1 is in use" in capsys.readouterr().err
    assert not Path("demo").exists()


@pytest.mark.parametrize("command", ["train", "tune"])
def test_two_commands_cannot_go_on_with_one_run(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = create_run(Path("runs"), command)
    before = (run.path / "job.json").read_bytes()
    with run.held():
        assert main([command, "--resume", run.name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {run.name} is still running\nhint: ")
    assert (run.path / "job.json").read_bytes() == before
    with run.held():  # the end of the block gives it back
        pass


@pytest.mark.parametrize("errors_too", [False, True])
@pytest.mark.parametrize("words", [["config"], ["--help"], ["status"], ["status", "nobody"]], ids=" ".join)
def test_a_reader_who_leaves_ends_a_command_quietly(tmp_path: Path, words: list[str], errors_too: bool) -> None:
    for number in range(3):
        create_run(tmp_path / "runs", "train", f"n{number}")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(DEPLOY), *words]
    ended = subprocess.run(
        command, cwd=tmp_path, stdout=write, stderr=write if errors_too else subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    on_errors = words == ["status", "nobody"]
    assert ended.returncode == (2 if on_errors and not errors_too else 141)
    assert on_errors or not ended.stderr


def test_a_guess_of_what_predictions_cost_says_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--rate", "20", "--cores", "2", "--busy", "0.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"instance": "ml.c7i.xlarge", "cores": 4, "rate": 40.0, "hour": 0.214}.items() <= next(
        row for row in told["rows"] if row["instance"] == "ml.c7i.xlarge"
    ).items()
    assert "busy for 50%" in " ".join(told["assumes"])
    for wrong in (("0",), ("nan",), ("inf",), ("1", "--busy", "0"), ("1", "--busy", "2"), ("1", "--cores", "0")):
        assert main(["cost", "--rate", *wrong]) == 2
        assert capsys.readouterr().out == ""
