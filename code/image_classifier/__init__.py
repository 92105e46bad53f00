"""ResNet50 image classification: trained, tuned and served the same way on this machine and on SageMaker."""

__version__ = "0.2.0"
