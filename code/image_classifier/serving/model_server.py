"""Runs multi-model-server through SageMaker's inference toolkit, in a process of its own that `entry` watches.

The toolkit is made for a container that holds one server and trusts its model. Told otherwise here:
- its configuration goes to the scratch folder, not to /etc; the log is plain lines on stdout, not files under ./logs;
- workers import from our source, never from the model folder, and nothing is pip-installed from it;
- the server process is found by its pid file, not by searching the machine, where another server may run.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from image_classifier.serving.lean_toolkit import environment, model_server
from image_classifier.serving.scratch import Scratch
from image_classifier.serving.server import SOURCE

HANDLER = "image_classifier.serving.handler:handle"
LOG_CONFIG = Path(__file__).with_name("log4j2.xml")


def main() -> None:
    """Starts the server and returns when it has ended."""
    scratch = Scratch.from_environment()
    environment.code_dir = str(SOURCE)
    environment.model_dir = str(scratch.model)
    model_server.REQUIREMENTS_PATH = str(scratch.model / "requirements.txt")
    model_server.MMS_CONFIG_FILE = str(scratch.server_config)
    model_server.DEFAULT_MMS_LOG_FILE = str(LOG_CONFIG)
    # the toolkit calls it again every second until it succeeds
    model_server._retrieve_mms_server_process = lambda: psutil.Process(int(scratch.server_pid.read_text()))
    model_server.start_model_server(handler_service=HANDLER)


if __name__ == "__main__":
    main()
