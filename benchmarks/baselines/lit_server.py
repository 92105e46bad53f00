"""LitServe with a worker a core, as its guide to speed on CPUs has it: lit_server.py PORT WORKERS WEIGHTS.

That guide's image comes as base64 in JSON. Batches of one: on a CPU a batch takes as long as its images one by one.
"""

from __future__ import annotations

import base64
import io
import sys

import litserve
from photo_model import PhotoModel
from PIL import Image


class LitPhotos(litserve.LitAPI):
    """One request, one photograph."""

    def setup(self, device: str) -> None:
        self.model = PhotoModel(sys.argv[3])

    def decode_request(self, request: dict[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(request["image_data"])))

    def predict(self, picture: Image.Image) -> dict[str, float]:
        return self.model.answer(picture)

    def encode_response(self, answer: dict[str, float]) -> dict[str, float]:
        return answer


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:3])
    api = LitPhotos(api_path="/invocations")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=workers, timeout=60)
    server.run(host="127.0.0.1", port=port, num_api_servers=1, log_level="warning", generate_client_file=False)
