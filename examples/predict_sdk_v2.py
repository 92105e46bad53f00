"""A photo to the endpoint with version 2 of the SageMaker SDK (`sagemaker<3`, in an environment of its own).

python examples/predict_sdk_v2.py image-classifier photo.jpg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import sagemaker
from sagemaker.predictor import Predictor


def main(endpoint: str, photo: str) -> None:
    predictor = Predictor(endpoint, sagemaker_session=sagemaker.Session())
    answer = predictor.predict(bytearray(Path(photo).read_bytes()), custom_attributes="top_k=3")
    for row in json.loads(answer)["predictions"]:
        print(f"{row['probability']:8.4f}  {row['label']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
