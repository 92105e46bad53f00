"""A proxy that stands for the internet, and hears what a program would send there."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

CODE = Path(__file__).parents[1] / "code"


class Proxy:
    """Hears what would go out: the first line of everything that is sent to it."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self.heard: list[str] = []
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def settings(self) -> dict[str, str]:
        """The variables that lead a program to it."""
        url = "http://{}:{}".format(*self._listener.getsockname())
        return dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), url)

    @property
    def environment(self) -> dict[str, str]:
        """For a program that is to be overheard: no settings that would keep it quiet, and a home of its own."""
        kept = {name: value for name, value in os.environ.items() if name not in {"CI", "HOME", "NO_PROXY", "no_proxy"}}
        return kept | self.settings | {"PYTHONPATH": str(CODE)}

    def _listen(self) -> None:
        with suppress(OSError):  # closed at the end of the test
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.settimeout(5)
                    self.heard.append(connection.recv(4096).decode(errors="replace").partition("\r\n")[0])
