"""Part (f): the libraries that docker/trim.py may replace by stubs, over a copy of the torch that is here.

A training and the serving engine run on the copy with every stub in place. A call into a stub aborts and says which;
the real library then takes its place again, and the next run may find another.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

from benchmarks.gpu.jobs import finished_model, make_job
from benchmarks.gpu.kit import CARRIED, Kit, Missing, child_environment, read_json
from benchmarks.gpu.stub_builder import build_all, has_compiler, is_one_of, load_trim, removed_from

COPIED = ("torch", "nvidia", "torchgen", "functorch")
NOT_COPIED = {"torch": ("include", "share", "test"), "nvidia": ("include",)}  # nothing loads these
CALLED = re.compile(r"(\S+) of (\S+) was called, which this image leaves out")
SERVE = """
import sys, torch
from pathlib import Path
from image_classifier.serving.classifier import Classifier
from image_classifier.serving.engines import FORMATS, TorchEngine
from image_classifier.vision.artifact import load_model
artifact, device = load_model(Path(sys.argv[1])), sys.argv[2]
for precision in FORMATS["torch"] if device == "cuda" else ("float32", "bfloat16"):
    classifier = Classifier(artifact, TorchEngine(artifact, device, precision))
    for sample in artifact.golden:
        classifier.probabilities(sample.image)
    if precision == artifact.manifest.precision:
        classifier.check_golden()
print("torch", torch.__file__)
"""


def run(kit: Kit) -> None:
    """Training with the stubs of the training image, serving with those of the serving image."""
    trim = load_trim()
    site = Path(str(distribution("torch").locate_file("")))
    if not list(site.glob("nvidia/**/libcufft.so.*")):
        raise Missing(f"the CUDA libraries of torch are not packages beside it in {site}")
    copy = kit.folder / "stubbed"
    shutil.rmtree(copy, ignore_errors=True)
    how = copy_torch(site, copy)
    kit.note("torch_examined_in_docker_trim", distribution("torch").version.partition("+")[0] in trim.EXAMINED)
    stubs = make_stubs(kit, trim, site)
    kit.note("copy", {"by": how, "stubs": sorted(stubs)})
    removed = removed_from(trim, copy)
    for path in removed:
        path.unlink()
    kit.note("removed", sorted(path.name for path in removed))
    model = finished_model(kit)
    try:
        for name in ("train", "serve"):
            wanted = {
                place: stub
                for place, stub in stubs.items()
                if name == "serve" or not is_one_of(trim.SERVE_STUBBED, place)
            }
            called = run_with(kit, name, model, site=site, copy=copy, stubs=wanted)
            kit.note(f"{name}_called", called)
            kit.claim(
                f"{name} calls no library that its image replaces by a stub", not called, ", ".join(called) or "none"
            )
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def make_stubs(kit: Kit, trim: ModuleType, site: Path) -> dict[str, bytes]:
    """Place -> stub: built here, or those that were carried for exactly these libraries."""
    if has_compiler():
        found = dict(build_all(trim, site))
    else:
        found = dict(carried_stubs(site))
        if not found:
            raise Missing("no gcc and binutils here, and no stubs were carried for this torch (carry.py --stubs-for)")
    for place, stub in found.items():
        if isinstance(stub, str):
            kit.skip(place, stub)
    return {place: stub for place, stub in found.items() if isinstance(stub, bytes)}


def carried_stubs(site: Path) -> Iterator[tuple[str, bytes | str]]:
    """Those of the carried folder that were made for the libraries that are here, by their sizes."""
    for place, about in read_json(CARRIED / "stubs" / "index.json").items():
        library = site / place
        if not library.is_file() or library.stat().st_size != about["bytes"]:
            yield place, "the carried stub was made for another library"
        else:
            yield place, (CARRIED / "stubs" / about["file"]).read_bytes()


def copy_torch(site: Path, copy: Path) -> str:
    """Makes the copy of hard links, or of symbolic ones where another file system leaves no choice; says which."""
    link, how = os.link, "hard links"
    try:
        copy.mkdir(parents=True)
        os.link(site / "torch" / "__init__.py", copy / "try")
        (copy / "try").unlink()
    except OSError:
        link, how = os.symlink, "symbolic links"
    for package in COPIED:
        if not (site / package).is_dir():
            continue

        def left_out(folder: str, names: list[str], package: str = package) -> set[str]:
            top = Path(folder) == site / package or package == "nvidia"
            return {"__pycache__"} | (set(NOT_COPIED.get(package, ())) if top else set())

        shutil.copytree(site / package, copy / package, ignore=left_out, copy_function=link)
    return how


def run_with(kit: Kit, name: str, model: Path, *, site: Path, copy: Path, stubs: Mapping[str, bytes]) -> list[str]:
    """Runs it until no stub is called; returns the calls that were. Raises RuntimeError when it fails otherwise."""
    for place, stub in stubs.items():
        put(copy / place, stub)
    called: list[str] = []
    while True:
        code, output = train(kit, copy) if name == "train" else serve(kit, copy, model)
        hit = CALLED.search(output)
        if code == 0:
            return called
        places = [
            place for place in stubs if hit is not None and Path(place).name.startswith(hit[2].partition(".so")[0])
        ]
        if hit is None or not places or hit[0] in called:
            tail = " | ".join(output.strip().splitlines()[-8:])
            raise RuntimeError(f"{name} ended with {code} on the stubbed torch: {tail}")
        called.append(f"{hit[1]} of {hit[2]}")
        for place in places:
            put(copy / place, (site / place).read_bytes())


def put(path: Path, content: bytes) -> None:
    """Replaces a link by a file of its own: what it links to stays as it is."""
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o755)


def train(kit: Kit, copy: Path) -> tuple[int, str]:
    """One short training on the copy: (exit code, what it printed)."""
    job = make_job(kit, "stubbed", epochs=1, batch_size=kit.size(256, 8), cache="none")
    job.environment = with_copy(copy) | {key: value for key, value in job.environment.items() if key != "PYTHONPATH"}
    job.start()
    job.wait()
    assert job.process is not None
    return job.process.returncode, job.log


def serve(kit: Kit, copy: Path, model: Path) -> tuple[int, str]:
    """Every number format of the torch engine on the golden samples, on the copy."""
    command = [sys.executable, "-c", SERVE, str(model), kit.size("cuda", "cpu")]
    done = subprocess.run(command, check=False, env=with_copy(copy), capture_output=True, text=True)
    used = [line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("torch ")]
    if done.returncode == 0 and not used[-1].startswith(str(copy)):
        raise RuntimeError(f"the copy was not used, but {used[-1]}")
    return done.returncode, done.stdout + done.stderr


def with_copy(copy: Path) -> dict[str, str]:
    """The environment in which `import torch` finds the copy."""
    path = os.pathsep.join([str(copy), os.environ.get("PYTHONPATH", "")])
    return child_environment(PYTHONPATH=path)
