"""InvokeEndpoint against the real model server: the gate hands invocations on to it, as SageMaker does."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tests.aws.gate import Gate
from tests.integration.test_serve_predict import free_port

from image_classifier.contract.wire import MAX_BODY_BYTES
from image_classifier.launch.process import Interrupts
from image_classifier.launch.serving_run import serving
from image_classifier.vision.artifact import load_model, pack

Deploy = Callable[..., tuple[int, str, str]]
PASSED_ON = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes")


def test_golden_samples_and_predictions_come_from_the_real_server(
    gate: Gate, deploy: Deploy, project: Path, model_dir: Path, tmp_path: Path
) -> None:
    archive, port = tmp_path / "model.tar.gz", free_port()
    pack(model_dir, archive)
    sizes: list[int] = []

    def hand_on(body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
        sizes.append(len(body))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        passed = {name: headers[name] for name in PASSED_ON if name in headers}
        connection.request("POST", "/invocations", body=body, headers=passed)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content

    gate.invoke = hand_on
    golden = load_model(model_dir).golden[0]
    (tmp_path / "golden.jpg").write_bytes(golden.image)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (tmp_path / "large.png").write_bytes(buffer.getvalue())
    assert buffer.tell() > MAX_BODY_BYTES
    with Interrupts() as interrupts, serving(archive, tmp_path / "server", interrupts, host="127.0.0.1", port=port):
        code, out, err = deploy("serve", str(archive), "--yes")
        assert code == 0, err
        assert "reproduces its 3 golden samples" in err
        images = [str(tmp_path / name) for name in ("golden.jpg", "bad.jpg", "large.png")]
        code, out, err = deploy("predict", *images, "--json", "--top-k", "6")
    assert code == 1  # one image is bad
    right, bad, large = map(json.loads, out.splitlines())
    answered = {each["label"]: each["probability"] for each in right["predictions"]}
    expected = dict(zip(load_model(model_dir).classes, golden.probabilities, strict=True))
    assert max(abs(answered[label] - probability) for label, probability in expected.items()) < 0.02
    assert bad["error"]
    assert "sent as" in large["note"]
    assert max(sizes) <= MAX_BODY_BYTES
