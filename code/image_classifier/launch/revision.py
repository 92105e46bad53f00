"""Which source a job ran."""

from __future__ import annotations

import subprocess

from image_classifier.contract.installation import checkout


def git_revision() -> str:
    """The source's short revision, `-dirty` when it was edited since; empty where it is no checkout: what is installed
    inside another repository is not of its revision."""
    folder = checkout()
    if folder is None:
        return ""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
