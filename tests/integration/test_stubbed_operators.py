"""What docker/trim.py leaves out is not called: the operators that a whole training job runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from image_classifier.contract.paths import MlPaths
from image_classifier.vision.sample_data import make_sample_data

CODE = Path(__file__).parents[2] / "code"
# Those that docker/stub_callers.py finds above cuFFT, cuSPARSE and cuSPARSELt, and those of libtorch_cuda_linalg.
# vector_norm and cross are kernels of libtorch_cuda itself.
LEFT_OUT = re.compile(
    r"_fft_|_cslt_|sparse|triangular_solve|linalg_(?!vector_norm|cross)|cholesky|_lu_|lu_unpack|svd|geqrf|ormqr|eigh?\b"
)
RECORD = """
import sys
from torch.utils._python_dispatch import TorchDispatchMode
from image_classifier.training.script import main
names = set()
class Record(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        names.add(function._schema.name)
        return function(*arguments, **(keywords or {}))
with Record():
    code = main(sys.argv[1:])
print("operators", *sorted(names))
sys.exit(code)
"""


def test_no_operator_of_a_training_job_is_one_that_the_images_leave_out(tmp_path: Path) -> None:
    paths = MlPaths(base=tmp_path)
    make_sample_data(paths.data, num_classes=2, train_per_class=8, valid_per_class=2, test_per_class=2, size=48)
    config = {
        "weights": "none", "image_size": "32", "epochs": "2", "batch_size": "8", "workers": "0", "amp": "bf16",
        "optimizer": "adamw",
    }  # fmt: skip
    arguments = [word for key, value in config.items() for word in (f"--{key}", value)]
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(tmp_path), "PYTHONPATH": str(CODE), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RECORD, *arguments], check=False, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    operators = done.stdout.splitlines()[-1].split()[1:]
    assert {"aten::convolution", "aten::convolution_backward", "aten::native_batch_norm"} <= set(operators)
    assert [name for name in operators if LEFT_OUT.search(name)] == []
