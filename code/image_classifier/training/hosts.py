"""The hosts of a training: whether their names lead anywhere, and over which network interface."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence

import psutil

from image_classifier.contract.errors import JobError

log = logging.getLogger(__name__)
SAY_AFTER_S = 5.0
GIVE_UP_AFTER_S = 300.0  # names of hosts that start together appear within seconds
_RETRY_S = 0.5
_LOOK_S = 0.1
_ANY_PORT = 9  # nothing is sent there


def wait_for_names(
    hosts: Sequence[str], *, say_after_s: float = SAY_AFTER_S, give_up_after_s: float = GIVE_UP_AFTER_S
) -> None:
    """Returns when the name of every host leads to an address; says after a while for which it waits.

    A look-up may take long and hears no signal: they are done beside the main thread, which does.

    Raises:
        JobError: some lead nowhere after `give_up_after_s`.
    """
    missing = list(hosts)
    gone = threading.Event()
    threading.Thread(target=_look_up, args=(missing, gone), daemon=True).start()
    started, said = time.monotonic(), False
    while missing:
        waited = time.monotonic() - started
        if waited > give_up_after_s:
            gone.set()
            raise JobError(
                f"gave up waiting for the addresses of {', '.join(missing)} after {give_up_after_s:.0f} s",
                "all hosts must be on one network that knows their names: "
                "docker run --network NAME --network-alias HOST",
            )
        if waited > say_after_s and not said:
            log.warning("waiting for the addresses of %s, for %.0f s at most", ", ".join(missing), give_up_after_s)
            said = True
        time.sleep(min(_LOOK_S, give_up_after_s))


def _look_up(missing: list[str], gone: threading.Event) -> None:
    """Takes names that lead somewhere out of `missing`, until there are none."""
    while missing and not gone.is_set():
        for host in list(missing):
            if _address(host):
                missing.remove(host)
        if missing:
            gone.wait(_RETRY_S)


def _address(host: str) -> str:
    """The address of a host, empty when its name leads nowhere."""
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError):
        return ""


def interface_towards(hosts: Sequence[str], current: str, named: str) -> str:
    """The network interface to the other hosts: the one that is `named`, if this machine has it.

    Local runs of the SageMaker SDK name `ethwe` in containers whose interface is eth0. Instead of one that is not
    there, the interface on the way to another host is taken; where none can be found, the answer is empty.
    """
    if named in (name for _, name in socket.if_nameindex()):
        return named
    other = next(host for host in hosts if host != current)
    found = _interface_of(_own_address_towards(other))
    chosen = f"{found} leads to {other}" if found else "the processes look for one themselves"
    log.warning("there is no network interface %s here, as resourceconfig.json says: %s", named, chosen)
    return found


def _own_address_towards(host: str) -> str:
    """This machine's address on the way to `host`; empty when there is no way."""
    if not (address := _address(host)):
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting it sends nothing
        try:
            probe.connect((address, _ANY_PORT))
            return str(probe.getsockname()[0])
        except OSError:
            return ""


def _interface_of(address: str) -> str:
    """The interface that has an address, empty when none has."""
    every = psutil.net_if_addrs().items()
    return next((name for name, own in every for each in own if address and each.address == address), "")
