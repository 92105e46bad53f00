"""Which source a job ran."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_revision() -> str:
    """The source's short revision, `-dirty` when it was edited since, empty outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
