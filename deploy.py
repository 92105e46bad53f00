#!/usr/bin/env python3
"""Folders of images to a tuned ResNet50 behind an endpoint: `python deploy.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))

try:
    from image_classifier.cli.main import main  # the source folder is known only now
except ImportError as error:
    sys.exit(
        f"error: {sys.executable} (Python {sys.version.split()[0]}) cannot run this: {error}\n"
        "hint: `make setup` makes an environment that can; then: .venv/bin/python deploy.py"
    )

if __name__ == "__main__":
    sys.exit(main())
