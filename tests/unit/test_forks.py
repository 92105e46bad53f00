"""The process that trainings are forked from, where it cannot be had."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from image_classifier.contract.errors import PlatformError
from image_classifier.contract.fork_requests import ForkRequest, socket_pair
from image_classifier.contract.machine import may_have_gpu
from image_classifier.launch.forks import Forks


def test_a_process_that_cannot_begin_says_why_in_the_trainings_log_and_gives_its_status(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    with Forks(tmp_path / "code", lambda: None) as forks:
        job = forks.start({"PATH": os.environ["PATH"]}, base=tmp_path, log=tmp_path / "logs" / "job.log")
        assert job is not None
        with job:
            deadline = time.monotonic() + 30
            while job.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert job.poll() == 1
            assert "No module named" in "".join(job.lines())


def test_a_log_that_cannot_be_opened_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "job.log").mkdir()
    with Forks(tmp_path, lambda: None) as forks, pytest.raises(PlatformError, match=r"job\.log"):
        forks.start({}, base=tmp_path, log=tmp_path / "job.log")


def test_a_request_arrives_whole_with_its_files_and_the_end_is_told(tmp_path: Path) -> None:
    launcher, server = socket_pair()
    read, written = os.pipe()
    base = tmp_path / ("x" * 200) / os.fsdecode(b"caf\xe9")
    with server:
        with launcher:
            ForkRequest(base=base, output=written, orders=read, answer=written).send(launcher)
        os.close(written)
        request = ForkRequest.receive(server)
        assert request is not None
        assert request.base == base
        os.write(request.answer, b"7\n")
        request.close()
        assert os.read(read, 10) == b"7\n"
        assert os.read(read, 10) == b""
        assert ForkRequest.receive(server) is None
    os.close(read)


def test_a_gpu_is_known_by_the_files_of_its_driver(tmp_path: Path) -> None:
    assert not may_have_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not may_have_gpu(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert may_have_gpu(tmp_path)
