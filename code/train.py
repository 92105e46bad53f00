"""SAGEMAKER_PROGRAM: what `train` of sagemaker-training runs with the hyperparameters as arguments."""

import sys

from image_classifier.training.script import leave_group, main

if __name__ == "__main__":
    status = main(sys.argv[1:])
    leave_group(status)
    sys.exit(status)
