"""SAGEMAKER_PROGRAM: what `train` of sagemaker-training runs with the hyperparameters as arguments."""

import sys

from image_classifier.training.script import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
