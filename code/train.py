"""SAGEMAKER_PROGRAM: what `train` of sagemaker-training runs with the hyperparameters as arguments."""

import sys

from image_classifier.training.script import leave, main

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
