"""A photo to the endpoint with boto3 alone.

python examples/predict_boto3.py image-classifier photo.jpg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import boto3


def main(endpoint: str, photo: str) -> None:
    answer = boto3.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint, Body=Path(photo).read_bytes(), Accept="application/json", CustomAttributes="top_k=3"
    )
    for row in json.loads(answer["Body"].read())["predictions"]:
        print(f"{row['probability']:8.4f}  {row['label']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
