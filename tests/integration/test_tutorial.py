"""The tutorial: its blocks of code are run, in their order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from image_classifier.contract.machine import free_port

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = "python - <<'END_OF_PROGRAM'\n{}END_OF_PROGRAM\n"


def test_what_the_tutorial_says_can_be_typed(tmp_path: Path) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"))
    assert [kind for kind, _ in blocks].count("bash") >= 7
    script = "".join(text if kind == "bash" else PYTHON.format(text) for kind, text in blocks)
    (tmp_path / "deploy.py").symlink_to(ROOT / "deploy.py")
    port = str(free_port("127.0.0.1", 20_000 + os.getpid() % 10_000))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-m", "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "code"),
            "CLASSIFIER_SERVE_PORT": port,
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert (tmp_path / "answers.csv").read_text(encoding="utf-8").count("bricks") >= 16
    assert (tmp_path / "exported" / "model.onnx").is_file()
    assert re.search(r"^(bricks|leaves|pebbles) 0\.\d+$|^(bricks|leaves|pebbles) 1\.0$", done.stdout, re.MULTILINE)
