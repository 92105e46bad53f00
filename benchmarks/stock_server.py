"""The endpoint that SageMaker's documentation leads to: sagemaker-inference as it comes, around a script of its form.

Two things are not stock, because several servers run side by side here: where the toolkit writes its configuration, and
how it finds the server's process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import io
import os

import torch
import torchvision
from PIL import Image
from torchvision import transforms

TRANSFORM = transforms.Compose([
    transforms.Resize(256),
    transforms.CenterCrop(224),
    transforms.ToTensor(),
    transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])


def model_fn(model_dir):
    state = torch.load(os.path.join(model_dir, "model.pth"), map_location="cpu")
    model = torchvision.models.resnet50(num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    return model.eval()


def input_fn(body, content_type):
    return TRANSFORM(Image.open(io.BytesIO(body)).convert("RGB")).unsqueeze(0)


def predict_fn(data, model):
    with torch.no_grad():
        return model(data).softmax(1)
"""


def write_model(folder: Path, weights: Path) -> None:
    """Lays out `folder` as SageMaker's /opt/ml: the script beside a copy of `weights`, a state dict."""
    code = folder / "model" / "code"
    code.mkdir(parents=True)
    (code / "inference.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "model" / "model.pth").write_bytes(weights.read_bytes())


def start(folder: Path, port: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The server on loopback, in a session of its own, its log in `folder`."""
    address = f"http://127.0.0.1:{port}"
    ours = {
        "SAGEMAKER_BASE_DIR": str(folder),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "MMS_INFERENCE_ADDRESS": address,
        "MMS_MANAGEMENT_ADDRESS": address,
        "TMPDIR": str(folder),
        "TEMP": str(folder),
    }
    with (folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            env={**environment, **ours},
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def main() -> None:
    """The server's own program."""
    import psutil
    from sagemaker_inference import model_server

    folder = Path(os.environ["TMPDIR"])
    model_server.MMS_CONFIG_FILE = str(folder / "mms.properties")
    pid_file = folder / ".model_server.pid"
    model_server._retrieve_mms_server_process = lambda: psutil.Process(int(pid_file.read_text()))
    model_server.start_model_server()


if __name__ == "__main__":
    main()
