"""Ray Serve with a replica a core, in its image example's shape: ray_server.py PORT WORKERS WEIGHTS.

Its guide to performance is followed: a core and OMP_NUM_THREADS=1 a replica, RAY_SERVE_THROUGHPUT_OPTIMIZED.
"""

from __future__ import annotations

import io
import signal
import sys
from tempfile import TemporaryDirectory

import ray
from photo_model import PhotoModel
from PIL import Image
from ray import serve
from starlette.requests import Request


@serve.deployment(ray_actor_options={"num_cpus": 1}, max_ongoing_requests=2)
class RayPhotos:
    """One request, one photograph."""

    def __init__(self, weights: str) -> None:
        self.model = PhotoModel(weights)

    async def __call__(self, request: Request) -> dict[str, float]:
        return self.model.answer(Image.open(io.BytesIO(await request.body())))


def main() -> None:
    port, workers = map(int, sys.argv[1:3])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with TemporaryDirectory(prefix="br-", ignore_cleanup_errors=True) as folder:
        alone = {"_node_ip_address": "127.0.0.1", "_temp_dir": folder, "include_dashboard": False}
        ray.init(num_cpus=workers, log_to_driver=False, **alone)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(RayPhotos.options(num_replicas=workers).bind(sys.argv[3]), route_prefix="/invocations")
        signal.sigwait({signal.SIGTERM})
        ray.shutdown()


if __name__ == "__main__":
    main()
