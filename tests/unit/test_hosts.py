"""Hosts whose names lead nowhere yet, and network interfaces that are not there."""

from __future__ import annotations

import logging
import socket
import threading

import pytest

from image_classifier.contract.errors import JobError
from image_classifier.training.hosts import interface_towards, wait_for_names
from image_classifier.training.toolkit_module import places

NOWHERE = "algo-2.invalid"  # RFC 2606: no such name will ever be given


def test_names_that_lead_nowhere_are_said_and_end_in_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(JobError, match=f"gave up waiting for the addresses of {NOWHERE} after 0 s") as caught:
        wait_for_names(["localhost", NOWHERE], say_after_s=0.1, give_up_after_s=0.4)
    assert "one network" in caught.value.hint
    assert f"waiting for the addresses of {NOWHERE}, for 0 s at most" in caplog.text


def test_names_that_lead_somewhere_are_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    wait_for_names(["localhost", "127.0.0.1"])
    assert caplog.text == ""


def test_a_name_that_appears_later_ends_the_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    there, real = threading.Event(), socket.gethostbyname

    def look_up(host: str) -> str:
        if host == NOWHERE and not there.is_set():
            there.set()  # it is, the next time
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real("localhost")

    monkeypatch.setattr(socket, "gethostbyname", look_up)
    wait_for_names([NOWHERE], say_after_s=0.1)
    assert there.is_set()


@pytest.mark.parametrize("name", ["", "a..b", "x" * 300, "é" * 70])
def test_what_can_be_no_host_is_waited_for_as_any_other(name: str) -> None:
    with pytest.raises(JobError, match="gave up waiting"):
        wait_for_names([f"{name}.invalid"], give_up_after_s=0.2)


def test_an_interface_that_is_there_is_taken_as_named() -> None:
    assert interface_towards(["127.0.0.1", "localhost"], "127.0.0.1", "lo") == "lo"


def test_in_place_of_one_that_is_not_the_one_that_leads_to_the_others_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert interface_towards(["algo-1", "127.0.0.1"], "algo-1", "ethwe") == "lo"
    assert "no network interface ethwe here" in caplog.text
    assert interface_towards(["algo-1", NOWHERE], "algo-1", "ethwe") == ""


def test_processes_are_told_an_interface_only_when_there_is_one() -> None:
    hosts = ["algo-1", "algo-2"]
    named = places(hosts, "algo-2", 1, "eth0")[0]
    assert (named["GLOO_SOCKET_IFNAME"], named["NCCL_SOCKET_IFNAME"], named["RANK"]) == ("eth0", "eth0", "1")
    assert not [name for name in places(hosts, "algo-2", 1, "")[0] if name.endswith("IFNAME")]


def test_a_host_alone_needs_no_name_that_leads_somewhere() -> None:
    assert [place["MASTER_ADDR"] for place in places(["algo-1"], "algo-1", 2, "")] == ["127.0.0.1"] * 2
    assert places(["algo-1"], "algo-1", 1, "") == [{}]
