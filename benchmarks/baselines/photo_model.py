"""The model as other servers' examples write it: torchvision's network in float32 and its transform, in torch.

The baselines' own environments see this folder, torch, and nothing of ours.
"""

from __future__ import annotations

import torch
import torchvision
from PIL import Image
from torchvision import transforms

TRANSFORM = transforms.Compose(
    [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class PhotoModel:
    """The weights of a state dict at `path`, on one thread: each server has as many processes as there are cores."""

    def __init__(self, path: str) -> None:
        torch.set_num_threads(1)
        state = torch.load(path, map_location="cpu")
        self._model = torchvision.models.resnet50(num_classes=len(state["fc.bias"]))
        self._model.load_state_dict(state)
        self._model.eval()

    def answer(self, picture: Image.Image) -> dict[str, float]:
        """The index of the most probable class, and its probability."""
        with torch.inference_mode():
            probabilities = self._model(TRANSFORM(picture.convert("RGB")).unsqueeze(0)).softmax(1)[0]
        probability, answer = probabilities.max(0)
        return {"answer": int(answer), "probability": float(probability)}
