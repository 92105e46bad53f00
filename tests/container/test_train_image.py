"""`docker run IMAGE train` with the standard /opt/ml mounts."""

from __future__ import annotations

import json
import os
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.container.conftest import NO_NETWORK, SERVE, TRAIN, container, docker, make_job, train_flags, write

from image_classifier.contract.metrics import parse_metric_line
from image_classifier.contract.paths import MlPaths
from image_classifier.vision.artifact import load_model


def test_train_writes_model_and_metrics(trained: tuple[MlPaths, str]) -> None:
    paths, log = trained
    assert load_model(paths.model).classes == tuple(sorted(folder.name for folder in paths.channel("train").iterdir()))
    metrics = json.loads((paths.output_data / "metrics.json").read_text())
    assert [parsed[0] for parsed in map(parse_metric_line, log.splitlines()) if parsed] == [1, 2, metrics["best_epoch"]]
    assert not paths.failure.exists()
    assert "Traceback" not in log


def test_failure_file_holds_first_cause(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data, max_bad_images="0")
    bad = next(paths.channel("train").glob("*/*.jpg"))
    bad.write_text("not an image")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        assert job.wait() == 1
        assert "Traceback" not in job.log
    failure = paths.failure.read_text()
    assert failure.startswith("1 images cannot be read, more than max_bad_images=0")
    assert bad.name in failure


def test_sigterm_saves_a_checkpoint_that_another_container_resumes(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data, epochs="500")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        job.wait_for("epoch=2/500 step=2/4")
        assert job.stop(20) == 143, job.log  # 137 if it had not ended by itself
        assert paths.failure.read_text().startswith("stopped by SIGTERM in epoch ")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        job.wait_for("step=")
        assert "epoch=1/500" not in job.log
        job.stop(20)


def test_unreachable_weights_are_a_sentence(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data, weights="imagenet")
    with container(TRAIN, "train", *train_flags(paths), *NO_NETWORK) as job:
        assert job.wait() == 1
    assert paths.failure.read_text().startswith("the ImageNet weights cannot be had from ")


def test_two_containers_on_one_network_train_together(
    images: None, tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    hosts = ("algo-1", "algo-2")
    network = f"classifier-{uuid.uuid4().hex[:8]}"
    docker("network", "create", network)
    request.addfinalizer(lambda: docker("network", "rm", network))
    jobs = {host: make_job(tmp_path / host, data, hosts=hosts) for host in hosts}
    config = json.loads(jobs["algo-2"].resource_config.read_text())
    write(jobs["algo-2"].resource_config, config | {"current_host": "algo-2"})
    with ExitStack() as stack:
        running = [
            stack.enter_context(container(TRAIN, "train", *train_flags(paths, host), *member(network, host)))
            for host, paths in jobs.items()
        ]
        assert [job.wait() for job in running] == [0, 0], [job.log for job in running]
        assert "processes: 2, this is number 0" in running[0].log
        assert parse_metric_line(running[0].log) is not None
        assert parse_metric_line(running[1].log) is None
    assert load_model(jobs["algo-1"].model).golden
    assert not list(jobs["algo-2"].model.iterdir())
    assert json.loads((jobs["algo-1"].output_data / "metrics.json").read_text())["images"]["train"] == 16


def test_an_interface_that_is_not_there_does_not_matter_and_hosts_end_together(
    images: None, tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    """As the SageMaker SDK's local mode starts two hosts, and ends both as soon as one has ended."""
    hosts = ("algo-1", "algo-2")
    network = f"classifier-{uuid.uuid4().hex[:8]}"
    docker("network", "create", network)
    request.addfinalizer(lambda: docker("network", "rm", network))
    with ExitStack() as stack:
        running = []
        for host in hosts:
            paths = make_job(tmp_path / host, data, hosts=hosts)
            config = json.loads(paths.resource_config.read_text())
            write(paths.resource_config, config | {"current_host": host, "network_interface_name": "ethwe"})
            running.append(
                stack.enter_context(container(TRAIN, "train", *train_flags(paths, host), *member(network, host)))
            )
        assert running[1].wait() == 0, running[1].log
        assert load_model(tmp_path / "algo-1" / "model").golden
        assert (tmp_path / "algo-1" / "output" / "data" / "report.html").is_file()
        assert running[0].wait() == 0, running[0].log
        assert "no network interface ethwe here" in running[0].log


def test_no_mounts_and_other_commands_are_a_sentence_and_a_code(images: None) -> None:
    for image, words, code, sentence in (
        (TRAIN, (), 2, "error: /opt/ml/input/config/hyperparameters.json is missing"),
        (TRAIN, ("serve",), 2, "error: this is the image that trains, not one that serves"),
        (TRAIN, ("trian",), 127, "error: this image has no program 'trian'"),
        (SERVE, (), 1, "error: "),
        (SERVE, ("train",), 2, "error: this is the image that serves, not one that trains"),
        (SERVE, ("serve", "now"), 2, "error: unknown argument"),
        (SERVE, ("sh", "-c", "echo error: of mine >&2; exit 9"), 9, "error: of mine"),
    ):
        done = docker("run", "--rm", "--network", "none", "--user", "10001:10001", image, *words, check=False)
        assert (done.returncode, done.stdout) == (code, ""), done
        assert done.stderr.startswith(sentence)
        assert "Traceback" not in done.stderr


def test_a_mount_over_all_of_opt_ml_and_a_name_that_leads_nowhere_do_not_matter(
    images: None, tmp_path: Path, data: Path
) -> None:
    paths = make_job(tmp_path / "ml", data)
    mount = ("--volume", f"{paths.base}:/opt/ml", "--user", f"{os.getuid()}:{os.getgid()}")
    with container(
        TRAIN, "train", "--network", "none", "--shm-size", "1g", "--env", "OMP_NUM_THREADS=1", *mount
    ) as job:
        assert job.wait() == 0, job.log
    assert load_model(paths.model).golden


def test_a_program_of_the_users_own_is_run(images: None, tmp_path: Path, data: Path) -> None:
    paths = make_job(tmp_path / "ml", data)
    paths.code.mkdir()
    paths.code.joinpath("mine.py").write_text(
        "import sys, torch, image_classifier.debugging.door\nprint('mine', *sys.argv[1:])\nsys.exit(7)\n"
    )
    write(paths.hyperparameters, {"sagemaker_program": '"mine.py"', "sagemaker_submit_directory": '"/opt/ml/code"'})
    flags = (*train_flags(paths), *NO_NETWORK, "--volume", f"{paths.code}:/opt/ml/code:ro")
    with container(TRAIN, "train", *flags) as job:
        assert job.wait() == 7, job.log
        assert "mine" in job.log
    assert paths.failure.read_text().startswith("mine.py ended with exit code 7")


def test_sigterm_ends_the_wait_for_a_host_that_never_comes(
    images: None, tmp_path: Path, data: Path, request: pytest.FixtureRequest
) -> None:
    network = f"classifier-{uuid.uuid4().hex[:8]}"
    docker("network", "create", network)
    request.addfinalizer(lambda: docker("network", "rm", network))
    paths = make_job(tmp_path / "algo-1", data, hosts=("algo-1", "algo-2"))
    flags = [*train_flags(paths), *member(network, "algo-1"), "--add-host", "algo-2:192.0.2.1"]
    with container(TRAIN, "train", *flags) as job:
        job.wait_for("processes: 1 of 2 are here")
        assert job.stop(20) == 143, job.log  # 137 if it had not ended by itself
    expected = "stopped by SIGTERM while waiting for the other processes (1 of 2 are here)"
    assert paths.failure.read_text().startswith(expected)


def member(network: str, host: str) -> tuple[str, ...]:
    return ("--network", network, "--network-alias", host)
