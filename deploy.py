#!/usr/bin/env python3
"""Folders of images to a tuned ResNet50 behind an endpoint: `python deploy.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "code"))

from image_classifier.launch.main import main  # the source folder is known only now

if __name__ == "__main__":
    sys.exit(main())
