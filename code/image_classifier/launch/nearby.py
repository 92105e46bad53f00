"""Where runs lie, when they are not where they are looked for: in the folder of the demo, of another project."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from image_classifier.contract.outputs import JOB

NAMED = 3  # folders in a sentence


def where_to_look(runs_dir: Path) -> str:
    """A hint for who finds no run in `runs_dir`."""
    folders = other_runs_dirs(runs_dir)[:NAMED]
    if _runs_in(runs_dir) or not folders:
        return "`deploy.py status` lists the runs"
    return f"there are runs in {' and in '.join(map(str, folders))}: deploy.py --runs-dir {folders[0]} ..."


def other_runs_dirs(runs_dir: Path) -> list[Path]:
    """Folders with runs, called as `runs_dir` is, in folders beside it: `demo/runs` for `runs`."""
    beside: list[Path] = []
    with suppress(OSError):
        beside = sorted(path for path in runs_dir.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [found for path in beside if _runs_in(found := path / runs_dir.name)]


def _runs_in(folder: Path) -> list[Path]:
    with suppress(OSError):
        return [path for path in folder.iterdir() if (path / JOB.name).is_file()]
    return []
