"""smdebug can be imported without the C half of a profiler that it does not need, and does not load pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from image_classifier.debugging import smdebug_loading
from image_classifier.debugging.smdebug_loading import pandas_when_used

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


LAZY = "from image_classifier.training.hook import import_smdebug; import_smdebug()"
USES = (
    "import pandas; assert pandas.DataFrame({'a': [1, 2]}).a.sum() == 3",
    "import pandas.io.json; assert pandas.io.json.read_json",
    "from pandas import Series; assert len(Series([1])) == 1",
    "from smdebug.profiler import system_metrics_reader as its; import pandas; assert its.pd.Series is pandas.Series",
    "import inspect; inspect.getmodule(inspect.currentframe()); assert 'pandas.core' not in sys.modules",
)


@pytest.mark.parametrize("use", USES)
def test_pandas_is_loaded_when_something_of_it_is_used(use: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(CODE)!r}); {LAZY}; assert 'pandas.core' not in sys.modules; {use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_pandas_that_is_loaded_or_missing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = f"import sys; sys.path.insert(0, {str(CODE)!r}); import pandas"
    subprocess.run([sys.executable, "-c", f"{first}; {LAZY}; assert sys.modules['pandas'] is pandas"], check=True)
    monkeypatch.setattr(smdebug_loading, "PANDAS", "no_such_package")
    with pandas_when_used():
        assert "no_such_package" not in sys.modules
