"""The training image under the local container mode of version 3 of the SageMaker SDK: one host, then two.

    python examples/local_mode_sdk_v3.py DATA FOLDER [TRAIN_IMAGE]

Needs Docker and docker-compose (or its version 2 or newer as a plugin), the image (`make build`), and an environment
with `sagemaker>=3.27` (`make sdk-v3`) and any AWS region and credentials, which are not used. DATA has
train/CLASS/*.jpg, and may have valid and test.
On SageMaker the same lines run with `Mode.SAGEMAKER_TRAINING_JOB`, an instance type such as ml.g5.xlarge, addresses of
S3 and an image in ECR.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sagemaker.core.training.configs import Compute, InputData
from sagemaker.train.model_trainer import Mode, ModelTrainer

ROLE = "arn:aws:iam::123456789012:role/classifier"
HYPERPARAMETERS = {"weights": "none", "epochs": 1, "image_size": 64, "batch_size": 8, "workers": 0}


def main(data: str, folder: str, train: str = "image-classifier-train") -> None:
    root, work = Path(data).resolve(), Path(folder).resolve()
    channels = [
        InputData(channel_name=path.name, data_source=str(path)) for path in sorted(root.iterdir()) if path.is_dir()
    ]
    for hosts in (1, 2):
        place = work / f"hosts-{hosts}"
        place.mkdir(parents=True)
        trainer = ModelTrainer(
            training_mode=Mode.LOCAL_CONTAINER,
            training_image=train,
            role=ROLE,
            base_job_name="classifier",
            compute=Compute(instance_type="local_cpu", instance_count=hosts),
            hyperparameters=HYPERPARAMETERS,
            environment={"OMP_NUM_THREADS": "1"},
            local_container_root=str(place),
        )
        trainer.train(input_data_config=channels, wait=True)
        print(f"trained on {hosts} host(s): {place / 'compressed_artifacts' / 'model.tar.gz'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
