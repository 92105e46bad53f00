"""`train` in the image: the toolkit's program of that name, behind a look at what it is given.

    python -m image_classifier.training.train_program

Exit codes: 2 when `input/config` is not what SageMaker makes it, 4 when there may be no folder `code`, with a sentence
on standard error and, where there is a folder for it, in the failure file. Otherwise those of `training/script.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from image_classifier.contract.errors import EXIT_PLATFORM, ClassifierError, ConfigError, PlatformError, describe
from image_classifier.contract.paths import MlPaths
from image_classifier.contract.text import visible
from image_classifier.training.ending import write_failure
from image_classifier.training.input_config import check_input


def main(argv: Sequence[str]) -> int:
    """Runs the job that lies below $SAGEMAKER_BASE_DIR."""
    paths = MlPaths.from_environment()
    try:
        if argv:
            raise ConfigError(
                f"train takes no arguments: {' '.join(argv)!r}", "hyperparameters stand in hyperparameters.json"
            )
        check_input(paths)
        _make_code_folder(paths)
    except ClassifierError as error:
        sys.stderr.write(visible(f"error: {error.message}") + "\n")
        if error.hint:
            sys.stderr.write(visible(f"hint: {error.hint}") + "\n")
        if paths.output.is_dir():
            write_failure(paths.failure, error)
        return EXIT_PLATFORM if isinstance(error, PlatformError) else error.exit_code
    from sagemaker_training.cli.train import main as train  # makes folders when it is imported

    train()  # ends the process
    return 0


def _make_code_folder(paths: MlPaths) -> None:
    """The toolkit makes it when it is imported, and raises what it meets."""
    try:
        paths.code.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"the folder for code cannot be made: {describe(error)}",
            f"let the container's user write to {paths.base}, or mount the folders below it one by one",
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
