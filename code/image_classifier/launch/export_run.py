"""The export command: a model is unpacked, written in another format by a program of its own, and proved there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from image_classifier.contract.errors import JobError
from image_classifier.contract.installation import SOURCE, require_extra
from image_classifier.vision import artifact


def export(archive: Path, kind: str, file: Path) -> None:
    """Writes the model of `archive` to `file`, in one of EXPORT_FORMATS.

    Raises:
        ArtifactError: the archive cannot be unpacked.
        PlatformError: what writes it is not installed.
        JobError: it could not be written, or what was written does not answer the golden samples; nothing is left.
    """
    if kind != "torchscript":
        require_extra("serve", f"a model as {kind}", "openvino")
    with tempfile.TemporaryDirectory(prefix="image-classifier-") as place:
        folder = Path(place) / "model"
        artifact.unpack(archive, folder)
        command = [sys.executable, "-m", "image_classifier.serving.exporting", str(folder), kind, str(file.absolute())]
        env = os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "utf-8:backslashreplace"}
        done = subprocess.run(command, env=env, check=False, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.splitlines()
        said = {word: line.partition(": ")[2] for line in lines for word in ("error", "hint") if line.startswith(word)}
        last = lines[-1] if lines else f"exit status {done.returncode}"
        raise JobError(said.get("error") or f"the export failed: {last}", said.get("hint", ""))
