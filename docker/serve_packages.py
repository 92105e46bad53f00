"""Hand this machine's pip settings to an image build, without writing any of them into the image.

    python serve_packages.py STATE_DIR

Writes STATE_DIR/pip.conf, the build's secret, from what `pip config list` says here. Package folders of this machine
(file:// indexes and find-links folders), which a build cannot see, are served on loopback until this program is
ended; the build reaches them because it runs on the host's network.
"""

from __future__ import annotations

import ast
import functools
import http.server
import subprocess
import sys
from pathlib import Path

CARRIED = ("index-url", "extra-index-url", "find-links", "trusted-host", "default-timeout", "timeout")
CA_BUNDLE_IN_BUILD = "/run/secrets/ca_bundle"


def pip_settings() -> dict[str, str]:
    """What pip is told on this machine; the environment goes before files, as in pip itself."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    settings: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = str(ast.literal_eval(value))
    return settings


def main(state: Path) -> None:
    root = state / "packages"
    root.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        settings = pip_settings()
        lines = ["[global]", f"cert = {CA_BUNDLE_IN_BUILD}"] if "cert" in settings else ["[global]"]
        for name in CARRIED:
            if name in settings:
                places = [reachable(place, root, address) for place in settings[name].split()]
                lines.append(f"{name} = {' '.join(places)}")
        (state / "pip.conf").write_text("\n".join(lines) + "\n")
        server.serve_forever()


def reachable(place: str, root: Path, address: str) -> str:
    """The same place as a build can reach it: a local folder is linked below `root`, which is what is served."""
    folder = Path(place.removeprefix("file://"))
    if not folder.is_absolute() or not folder.is_dir():
        return place
    shared = folder.parent if place.startswith("file://") else folder  # an index's pages point beside it: ../../files
    link = root / shared.relative_to("/")
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(shared)
    return f"{address}{folder}/"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
