"""Print what the image holds as a CycloneDX 1.5 bill of materials: Debian's packages and Python's.

Run by the image's own Python. Debian packages come from dpkg's database, Python's from the metadata on sys.path.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from importlib.metadata import distributions
from typing import Any


def debian_packages() -> Iterator[dict[str, Any]]:
    listing = subprocess.run(
        ["/usr/bin/dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in sorted(listing.splitlines()):
        name, version, architecture = line.split("\t")
        yield component(name, version, f"pkg:deb/debian/{name}@{version}?arch={architecture}", "")


def python_packages() -> Iterator[dict[str, Any]]:
    for found in sorted(distributions(), key=lambda one: one.name.lower()):
        metadata = found.metadata.json
        license_text = str(metadata.get("license_expression") or metadata.get("license") or "")
        name = found.name.lower().replace("_", "-")
        yield component(name, found.version, f"pkg:pypi/{name}@{found.version}", license_text)


def component(name: str, version: str, purl: str, license_text: str) -> dict[str, Any]:
    """One entry of the bill. A license field that holds a whole license text is left out: it names nothing."""
    entry: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if license_text and "\n" not in license_text:
        entry["licenses"] = [{"license": {"name": license_text}}]
    return entry


if __name__ == "__main__":
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "components": [*debian_packages(), *python_packages()],
    }
    print(json.dumps(bill, indent=1))
