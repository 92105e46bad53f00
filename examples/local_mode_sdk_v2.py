"""Both images under the local mode of the SageMaker SDK, version 2: fit, fit on two hosts, deploy, predict, transform.

    python examples/local_mode_sdk_v2.py DATA FOLDER [TRAIN_IMAGE SERVE_IMAGE]

Needs Docker and docker-compose (or its version 2 as a plugin, not a newer one), the two images (`make build`), and an
environment with `sagemaker<3` (`make sdk-v2`) and any AWS region and credentials, which are not used. DATA has
train/CLASS/*.jpg, and may have valid and test. On SageMaker the same lines run with an instance type such as
ml.g5.xlarge in the place of `local`, addresses of S3 in the place of `file://`, and images in ECR.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sagemaker.estimator import Estimator
from sagemaker.local import LocalSession
from sagemaker.model import Model
from sagemaker.predictor import Predictor

ROLE = "arn:aws:iam::123456789012:role/classifier"
HYPERPARAMETERS = {"weights": "none", "epochs": 1, "image_size": 64, "batch_size": 8, "workers": 0}


def main(data: str, folder: str, train: str = "image-classifier-train", serve: str = "image-classifier-serve") -> None:
    root, work = Path(data).resolve(), Path(folder).resolve()
    session = LocalSession()
    session.config = {"local": {"local_code": True, "container_root": str(work)}}
    channels = {path.name: f"file://{path}" for path in sorted(root.iterdir()) if path.is_dir()}
    for hosts in (1, 2):
        estimator = Estimator(
            image_uri=train,
            role=ROLE,
            instance_count=hosts,
            instance_type="local",
            hyperparameters=HYPERPARAMETERS,
            environment={"OMP_NUM_THREADS": "1"},
            output_path=f"file://{work}/output-{hosts}",
            sagemaker_session=session,
        )
        estimator.fit(channels)
        print(f"fit on {hosts} host(s): {estimator.model_data}")
    model = Model(
        image_uri=serve,  # the estimator's own deploy() would start the image that trains
        model_data=estimator.model_data,
        role=ROLE,
        sagemaker_session=session,
    )
    model.deploy(initial_instance_count=1, instance_type="local")
    predictor = Predictor(model.endpoint_name, sagemaker_session=session)
    photo = next(path for path in sorted((root / "train").rglob("*.jpg")))
    print("predicted:", json.loads(predictor.predict(bytearray(photo.read_bytes())))["predictions"])
    predictor.delete_endpoint()
    transformer = model.transformer(
        instance_count=1,
        instance_type="local",
        strategy="SingleRecord",  # local mode does not know the SINGLE_RECORD that a container answers
        output_path=f"file://{work}/answers",
    )
    # local mode has done it when it returns; to wait would be to read the job's log from CloudWatch
    transformer.transform(f"file://{photo.parent}", content_type="application/x-image", wait=False)
    print("transformed:", len(list((work / "answers").glob("*.out"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
