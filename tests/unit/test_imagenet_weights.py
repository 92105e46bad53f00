"""ImageNet's weights are fetched before a run is made, with their bytes in sight, or one sentence says why not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from torchvision.models import ResNet50_Weights

from image_classifier.cli.main import main
from image_classifier.contract.errors import WeightsError
from image_classifier.launch import imagenet_weights
from image_classifier.launch.imagenet_weights import cache_file, fetch_imagenet
from image_classifier.launch.view import SILENT, View
from image_classifier.vision.network import IMAGENET_FILE, IMAGENET_URL
from image_classifier.vision.sample_data import make_sample_data

CONTENT = b"weights" * 100_000
NAME = f"resnet50-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing."""


class Told(View):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves a file under a name that its checksum is in; torch's cache lies in an empty folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(imagenet_weights, "IMAGENET_FILE", NAME)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / NAME).write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served"))) as made:
        Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}/{NAME}"
        made.shutdown()


def test_the_address_and_the_place_are_those_of_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ResNet50_Weights.IMAGENET1K_V2.url == IMAGENET_URL
    for name, value in (("TORCH_HOME", ""), ("XDG_CACHE_HOME", str(tmp_path / "x")), ("TORCH_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        assert cache_file() == Path(torch.hub.get_dir()) / "checkpoints" / IMAGENET_FILE


def test_they_are_fetched_once_and_the_bytes_are_told(server: str) -> None:
    told = Told()
    file = fetch_imagenet(told, server)
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == [NAME]
    assert "weights: 0.7 of 0.7 MB" in told.notes[-1]
    assert fetch_imagenet(told, "http://127.0.0.1:9/") == file
    assert len(told.notes) == 2


@pytest.mark.parametrize("fault", ["cut", "other", "missing"])
def test_what_is_not_the_file_is_not_kept(
    server: str, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served" / NAME
    if fault == "cut":
        monkeypatch.setattr(Quiet, "copyfile", lambda self, source, out: out.write(source.read(1000)))
    elif fault == "other":
        served.write_bytes(CONTENT + b"!")
    else:
        served.unlink()
    with pytest.raises(WeightsError) as caught:
        fetch_imagenet(SILENT, server)
    assert "--weights FILE" in caught.value.hint
    assert list(cache_file().parent.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "tune"])
def test_without_a_network_no_run_is_made(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # the discard port: nobody listens
    make_sample_data(Path("data"), num_classes=2, train_per_class=4, valid_per_class=1, test_per_class=1, size=32)
    assert main([command, "--data", "data"]) == 1
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith(f"error: the ImageNet weights cannot be had from {IMAGENET_URL}: ")
    assert "--weights FILE" in hint
    assert "channel" not in hint
    assert not Path("runs").exists()
