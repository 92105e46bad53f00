"""A photo to the endpoint with version 3 of the SageMaker SDK, whose base package is in this project's environment.

python examples/predict_sdk_v3.py image-classifier photo.jpg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sagemaker.core.resources import Endpoint


def main(endpoint: str, photo: str) -> None:
    answer = Endpoint.get(endpoint).invoke(
        body=Path(photo).read_bytes(),
        content_type="application/octet-stream",
        accept="application/json",
        custom_attributes="top_k=3",
    )
    for row in json.loads(answer.body.read())["predictions"]:
        print(f"{row['probability']:8.4f}  {row['label']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
