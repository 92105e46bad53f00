"""ResNet50 image classification: trained, tuned and served the same way on this machine and on SageMaker.

    from image_classifier import load

    model = load("model.tar.gz")
    model.predict("photo.jpg").label

`load` is the only public name; all else may change.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_classifier.serving.loaded_model import load as load

__all__ = ["load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`load` is looked for when it is asked for: the other programs that import this package need no engine."""
    if name == "load":
        from importlib import import_module

        return import_module("image_classifier.serving.loaded_model").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
