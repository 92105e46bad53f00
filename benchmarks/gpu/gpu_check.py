"""Proves on a GPU what is said of this project, part by part, in fourteen minutes at most.

    make gpu-check                                      (the project's environment)
    python benchmarks/gpu/gpu_check.py                  (any environment with torch, torchvision, numpy, pillow,
                                                         psutil, safetensors; see docs/gpu.md)
    python benchmarks/gpu/gpu_check.py --fake           (tries the program on a CPU; proves nothing)

Each part is a process of its own with its own time limit, and writes what it finds as it finds it. A later run goes on:
parts that ended well are kept, the others run again. The result is written after every part: gpu.json and gpu.md in
benchmarks/results, with --fake in the folder of the check. The exit code is 0 when every part ended or was skipped by
name and no claim was refuted, else 1; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.kit import ROOT, Kit, Missing, read_json, search_path, write_json
from benchmarks.gpu.table import write_table

BUDGET_S = 840.0
FAKE_PATIENCE = 10  # times the limits with --fake: its machine may be slow or busy
GRACE_S = 3.0  # between SIGTERM and SIGKILL for a part that is out of time
TAIL = 6  # lines of a failed part's log that its result quotes
OK, SKIPPED, FAILED, OUT_OF_TIME, NO_TIME = "ok", "skipped", "failed", "out of time", "not begun"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part: a module of this package with `run(kit)`.

    Args:
        limit_s: seconds it may take. The limits add up to BUDGET_S at most.
    """

    name: str
    module: str
    title: str
    limit_s: float


PARTS = (
    Part(name="0", module="machine_and_photos", title="machine and photos", limit_s=20),
    Part(name="a", module="trainer", title="trainer, from start to model", limit_s=150),
    Part(name="b", module="overhead", title="cost of watching, synchronisations", limit_s=110),
    Part(name="c", module="rules_on_faults", title="planted faults", limit_s=130),
    Part(name="d", module="golden_engines", title="golden samples by engine", limit_s=25),
    Part(name="e", module="serving_in_process", title="serving in process", limit_s=60),
    Part(name="f", module="stub_libraries", title="stub libraries", limit_s=65),
    Part(name="g", module="resume", title="kill and resume", limit_s=70),
    Part(name="h", module="trace_and_nvml", title="sampler and trace", limit_s=50),
    Part(name="i", module="norms", title="layer ends by our kernels", limit_s=20),
    Part(name="j", module="compiled", title="the step beside torch.compile", limit_s=140),
)


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    os.environ["PYTHONPATH"] = os.pathsep.join(search_path(fake=options.fake))
    sys.path[:0] = search_path(fake=options.fake)
    if options.fake:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # toy networks gain nothing from more threads
    if options.part:
        return run_part(options.part, options.folder, fake=options.fake)
    if not options.fake and not has_gpu():
        print("error: torch finds no GPU here\nhint: --fake tries the program without one", file=sys.stderr)
        return 2
    folder = options.folder or (
        Path(tempfile.mkdtemp(prefix="gpu-check-")) if options.fake else ROOT / "build/gpu-check"
    )
    results = options.results or (folder if options.fake else ROOT / "benchmarks" / "results")
    try:
        return check(options, folder.resolve(), results.resolve())
    finally:
        if options.fake and options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(f"{part.name} ({part.title})" for part in PARTS)
    parser.add_argument("--fake", action="store_true", help="toy sizes on the CPU: tries the program, proves nothing")
    parser.add_argument("--only", default="", help=f"parts with commas between: {names}")
    parser.add_argument("--again", action="store_true", help="run parts again that ended well before")
    parser.add_argument("--budget", type=float, default=BUDGET_S, metavar="SECONDS", help="of all parts (840)")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="another time limit of a part"
    )
    parser.add_argument("--folder", type=Path, help="photos, trainings and logs (build/gpu-check)")
    parser.add_argument("--results", type=Path, help="where gpu.json and gpu.md go (benchmarks/results)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    known = {part.name for part in PARTS}
    options.only = [name for name in options.only.split(",") if name]
    try:
        options.limit = {name: float(seconds) for name, seconds in (each.split("=") for each in options.limit)}
    except ValueError:
        parser.error("--limit is written PART=SECONDS, such as a=120")
    if unknown := {*options.only, *options.limit, *filter(None, [options.part])} - known:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {names}")
    return options


def has_gpu() -> bool:
    """Asked in a process of its own: this one has no use for torch."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def check(options: argparse.Namespace, folder: Path, results: Path) -> int:
    """Runs the parts that are to be run; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # by way of ending the part
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    patience = FAKE_PATIENCE if options.fake else 1
    command = shlex.join(["python", "benchmarks/gpu/gpu_check.py", *sys.argv[1:]])
    for part in PARTS:
        file = folder / f"{part.name}.json"
        if options.only and part.name not in options.only:
            continue
        if read_json(file).get("status") in (OK, SKIPPED) and not options.again:
            print(f"{part.name}  {part.title}: kept from an earlier run", flush=True)
            continue
        left = patience * options.budget - (time.monotonic() - begun)
        limit = options.limit.get(part.name, patience * part.limit_s)
        found = run_child(part, folder, min(left, limit), fake=options.fake)
        write_json(file, found)
        why = f": {found['why']}" if found["why"] else ""
        print(f"{part.name}  {part.title}: {found['status']}, {found['seconds']:.1f} s{why}", flush=True)
        write_results(folder, results, command, fake=options.fake)
    found = write_results(folder, results, command, fake=options.fake)
    print(f"{time.monotonic() - begun:.0f} s; {results / 'gpu.md'}", flush=True)
    well = all(part["status"] in (OK, SKIPPED) for part in found["parts"] if part["status"])
    return 0 if well and all(claim["holds"] is not False for part in found["parts"] for claim in part["claims"]) else 1


def run_child(part: Part, folder: Path, limit_s: float, *, fake: bool) -> dict[str, Any]:
    """One part in a process of its own; what it wrote, with how it ended. A part that is out of time is killed with all
    it started, and keeps what it had found."""
    file, log = folder / f"{part.name}.json", folder / "logs" / f"{part.name}.log"
    file.unlink(missing_ok=True)
    log.parent.mkdir(exist_ok=True)
    begun = time.monotonic()
    status, why = NO_TIME, "the time of the whole check was used up"
    if limit_s > 0:
        command = [
            sys.executable,
            __file__,
            "--part",
            part.name,
            "--folder",
            str(folder),
            *(["--fake"] if fake else []),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(limit_s)
                status, why = (OK, "") if code == 0 else (FAILED, tail(log, code))
            except subprocess.TimeoutExpired:
                status, why = OUT_OF_TIME, f"killed after {limit_s:.0f} s"
            finally:
                end_group(process)
    found = read_json(file)
    if found.get("status") == SKIPPED:
        status, why = SKIPPED, found["why"]
    return {
        "part": part.name,
        "title": part.title,
        "date": now(),
        "status": status,
        "why": why,
        "seconds": round(time.monotonic() - begun, 1),
        "limit_s": limit_s if limit_s > 0 else 0,
        "measured": found.get("measured", {}),
        "claims": found.get("claims", []),
        "skipped": found.get("skipped", []),
    }


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a part and everything it started: they are one process group, which is ours alone."""
    for number, seconds in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)  # raises when the group is empty
                time.sleep(0.05)


def tail(log: Path, code: int) -> str:
    """Why a part failed: its exit code and the last lines it printed, without those that underline another."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return f"ended with {code}: " + " | ".join([line for line in lines if line.strip("^~ ")][-TAIL:])


def run_part(name: str, folder: Path, *, fake: bool) -> int:
    """Runs one part in this process. Its errors are the log's; that it cannot run here is its result."""
    (part,) = (each for each in PARTS if each.name == name)
    kit = Kit(folder=folder, fake=fake, file=folder / f"{name}.json")
    kit.write()
    try:
        importlib.import_module(f"benchmarks.gpu.{part.module}").run(kit)
    except Missing as error:
        kit.write(status=SKIPPED, why=str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("benchmarks", "image_classifier")):
            raise
        kit.write(status=SKIPPED, why=f"the package {error.name} is not installed")
    return 0


def now() -> str:
    """The date and the minute."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def write_results(folder: Path, results: Path, command: str, *, fake: bool) -> dict[str, Any]:
    """Writes gpu.json and gpu.md of all parts that have run so far, in this run or an earlier one."""
    empty = {"date": "", "status": "", "why": "not run", "seconds": 0.0, "measured": {}, "claims": [], "skipped": []}
    parts = [
        {"part": part.name, "title": part.title} | empty | read_json(folder / f"{part.name}.json") for part in PARTS
    ]
    found = {
        "date": now(),
        "command": command,
        "fake": fake,
        "machine": parts[0]["measured"].get("machine", {}),
        "complete": all(part["status"] in (OK, SKIPPED) for part in parts),
        "parts": parts,
    }
    write_json(results / "gpu.json", found)
    write_table(results / "gpu.md", found)
    return found


if __name__ == "__main__":
    sys.exit(main())
