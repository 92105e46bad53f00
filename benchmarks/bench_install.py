"""How much each way to install takes on the disk.

    PYTHONPATH=code:. python benchmarks/bench_install.py [--extras serve,all]

Each is installed by pip into an environment of its own, from this checkout, with what the package index has today.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import venv
from pathlib import Path

from benchmarks.record import write_result

ROOT = Path(__file__).parents[1]
LARGEST = 3  # packages that are named


def installed(extra: str, folder: Path) -> Path:
    """The environment's packages, after `pip install '.[EXTRA]'` of a copy of the checkout."""
    copy = folder / "checkout"
    for name in ("code", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy)
    venv.create(folder / "venv", with_pip=True)
    command = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", f"{copy}[{extra}]"]
    subprocess.run(command, check=True)
    return next((folder / "venv" / "lib").glob("python*/site-packages"))


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(each.lstat().st_size for each in (path, *path.rglob("*")) if not each.is_dir())


def main() -> None:
    """Installs, and writes results/install.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", default="serve,all")
    extras = parser.parse_args().extras.split(",")
    lines = [
        "# Ways to install",
        "",
        f"`PYTHONPATH=code:. python benchmarks/bench_install.py --extras {','.join(extras)}`",
        "",
        "All files of the environment, pip's and the bytecode it writes included.",
        "",
        "| `pip install` | MB | largest packages, MB |",
        "|---|---|---|",
    ]
    for extra in extras:
        with tempfile.TemporaryDirectory() as folder:
            packages = installed(extra, Path(folder))
            sizes = sorted(((size(path), path.name) for path in packages.iterdir()), reverse=True)[:LARGEST]
            named = ", ".join(f"{name} {count / 1e6:.0f}" for count, name in sizes)
            lines.append(f"| `.[{extra}]` | {size(packages.parents[2]) / 1e6:.0f} | {named} |")
    write_result("install.md", lines)


if __name__ == "__main__":
    main()
