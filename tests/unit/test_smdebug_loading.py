"""smdebug can be imported without the C half of a profiler that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = Path(__file__).parents[2] / "code"
LOAD = "import sys; sys.path.insert(0, {code!r}); {before}; import smdebug.pytorch"
MISSING = (
    "sys.modules['pyinstrument_cext'] = None"  # as an extension that does not load: importing it is an ImportError
)
OURS = "from image_classifier.debugging.smdebug_loading import make_importable; make_importable()"


@pytest.mark.parametrize(("before", "works"), [(MISSING, False), (f"{MISSING}; {OURS}", True)])
def test_smdebug_loads_without_the_profilers_c_half(before: str, works: bool) -> None:
    code = LOAD.format(code=str(CODE), before=before)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is works, done.stderr
    assert ("pyinstrument_cext" in done.stderr) is not works
