"""ResNet50 image classification: trained, tuned and served the same way on this machine and on SageMaker.

    from image_classifier import load

    model = load("model.tar.gz")
    model.predict("photo.jpg").label

`load` and the types of what it gives, `LoadedModel` and `Prediction`, are the only public names; all else may change.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_classifier.serving.loaded_model import LoadedModel, Prediction, load

__all__ = ["LoadedModel", "Prediction", "load"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """They are looked for when they are asked for: the other programs that import this package need no engine."""
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("image_classifier.serving.loaded_model"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
