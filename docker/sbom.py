"""Print what the image holds as a CycloneDX 1.5 bill of materials: Debian's packages and Python's.

    python sbom.py DPKG_DIR

Run by the image's own Python. Debian packages come from dpkg's database in DPKG_DIR, Python's from the metadata on
sys.path. A shared library that a package brought and that is gone, or is not the one it brought, is a property of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

REMOVED, REPLACED = "image-classifier:removed", "image-classifier:replaced-by-stub"  # what docker/trim.py does


def debian_packages(database: str) -> Iterator[dict[str, Any]]:
    query = ["--show", "--showformat", "${Package}\t${Version}\t${Architecture}\n"]
    listing = subprocess.run(
        ["/usr/bin/dpkg-query", f"--admindir={database}", *query], check=True, capture_output=True, text=True
    ).stdout
    for line in sorted(listing.splitlines()):
        name, version, architecture = line.split("\t")
        yield component(name, version, f"pkg:deb/debian/{name}@{version}?arch={architecture}", "")


def python_packages() -> Iterator[dict[str, Any]]:
    for found in sorted(distributions(), key=lambda one: one.name.lower()):
        metadata = found.metadata.json
        license_text = str(metadata.get("license_expression") or metadata.get("license") or "")
        name = found.name.lower().replace("_", "-")
        entry = component(name, found.version, f"pkg:pypi/{name}@{found.version}", license_text)
        if changes := [{"name": change, "value": library} for change, library in changed_libraries(found)]:
            entry["properties"] = changes
        yield entry


def changed_libraries(found: Distribution) -> Iterator[tuple[str, str]]:
    """(REMOVED or REPLACED, library), by the sizes that the package's own record gives."""
    for file in found.files or ():
        if ".so" in file.suffixes and file.size is not None:
            path = Path(str(file.locate()))
            if not path.exists():
                yield REMOVED, str(file)
            elif path.stat().st_size != file.size:
                yield REPLACED, str(file)


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
        "components": [*debian_packages(sys.argv[1]), *python_packages()],
    }
    print(json.dumps(bill, indent=1))
