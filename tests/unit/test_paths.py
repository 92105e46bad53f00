import json
import subprocess
import sys
from pathlib import Path

from image_classifier.contract.paths import MlPaths

TOOLKIT_PATHS = """
import json
from sagemaker_training import environment as e
print(json.dumps([e.model_dir, e.output_data_dir, e.hyperparameters_file_dir, e.channel_path("train"), e.code_dir]))
"""


def test_the_base_folder_is_opt_ml_unless_moved() -> None:
    assert MlPaths.from_environment({}).model == Path("/opt/ml/model")
    assert MlPaths.from_environment({"SAGEMAKER_BASE_DIR": ""}).model == Path("/opt/ml/model")
    assert MlPaths.from_environment({"SAGEMAKER_BASE_DIR": "/runs/x"}).failure == Path("/runs/x/output/failure")


def test_the_layout_is_the_one_the_toolkit_uses(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", TOOLKIT_PATHS],
        env={"SAGEMAKER_BASE_DIR": str(tmp_path)},
        capture_output=True,
        check=True,
    )
    paths = MlPaths(base=tmp_path)
    ours = [paths.model, paths.output_data, paths.hyperparameters, paths.channel("train"), paths.code]
    assert json.loads(answer.stdout) == [str(path) for path in ours]


def test_trials_that_share_a_checkpoint_folder_keep_to_one_of_their_own(tmp_path: Path) -> None:
    environ = {"SAGEMAKER_BASE_DIR": str(tmp_path), "TRAINING_JOB_NAME": "tune-1-003"}
    assert MlPaths.from_environment(environ).checkpoints == tmp_path / "checkpoints"
    shared = environ | {"CLASSIFIER_SHARED_CHECKPOINTS": "1"}
    assert MlPaths.from_environment(shared).checkpoints == tmp_path / "checkpoints" / "tune-1-003"
