"""Makes the folder that a GPU machine without a network needs besides this repository: build/gpu-carried.

    python benchmarks/gpu/carry.py [--stubs-for SITE_PACKAGES]

packages/: smdebug with what it imports, as the lock of the training image pins it and nothing but Python code, so that
any Python and any machine can use it. What smdebug imports and never calls here (pandas, boto3, botocore) is an empty
module. Its one call of a method that numpy 2.3 dropped is written anew. stubs/: with --stubs-for, the stub libraries of
docker/trim.py for the torch in that folder, for machines without a compiler.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.kit import CARRIED, ROOT, write_json
from benchmarks.gpu.stub_builder import build_all, load_trim

LOCK = ROOT / "requirements" / "train.txt"
PACKAGES = (
    "smdebug",
    "protobuf",
    "pyinstrument",
    "packaging",
    "six",
    "requests",
    "urllib3",
    "idna",
    "certifi",
    "charset-normalizer",
)
BOTO_ERRORS = (
    *("ClientError", "CredentialRetrievalError", "NoCredentialsError", "NoRegionError", "PartialCredentialsError"),
    *("ServiceNotInRegionError", "UnknownSignatureVersionError"),
)
PLACEHOLDERS = {
    "pandas": "",
    "boto3/__init__": "",
    "boto3/s3/__init__": "",
    "boto3/s3/transfer": "TransferConfig = object\n",
    "botocore/__init__": "",
    "botocore/exceptions": "".join(f"class {name}(Exception):\n    pass\n" for name in BOTO_ERRORS),
    "pyinstrument_cext": "setstatprofile = None\n",
}
CALL, INSTEAD = ".tostring()", ".tobytes()"
MAX_BYTES = 64 * 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stubs-for", type=Path, metavar="SITE_PACKAGES", help="where the machine's release of torch is"
    )
    options = parser.parse_args()
    shutil.rmtree(CARRIED, ignore_errors=True)
    carry_packages(CARRIED / "packages")
    if options.stubs_for:
        carry_stubs(options.stubs_for, CARRIED / "stubs")
    files = [path for path in CARRIED.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"{CARRIED}: {len(files)} files, {size / 1e6:.1f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"error: more than {MAX_BYTES / 1e6:.0f} MB")


def carry_packages(folder: Path) -> None:
    """Installs the pinned packages into a folder of their own, with their hashes."""
    with tempfile.TemporaryDirectory() as temporary:
        lock = Path(temporary) / "lock.txt"
        lock.write_text("".join(pinned(name) for name in PACKAGES))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile"]
        pure = ["--only-binary=:all:", "--platform=any", "--implementation=py", "--abi=none"]
        subprocess.run([*pip, *pure, "--target", str(folder), "-r", str(lock)], check=True)
    for name, text in PLACEHOLDERS.items():
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'"""A placeholder: smdebug imports it, and never calls it here."""\n{text}')
    file = folder / "smdebug" / "core" / "tfevent" / "util.py"
    before = file.read_text(encoding="utf-8")
    if before.count(CALL) != 1:
        raise SystemExit(f"error: {file} does not hold {CALL} once: look at this release of smdebug")
    file.write_text(before.replace(CALL, INSTEAD), encoding="utf-8")


def pinned(name: str) -> str:
    """A package's lines of the lock, without conditions: pure Python is the same everywhere."""
    found = re.search(rf"^{name}==\S+.*?(?=^\S)", LOCK.read_text(encoding="utf-8") + "\nend", re.MULTILINE | re.DOTALL)
    if found is None:
        raise SystemExit(f"error: {LOCK} does not pin {name}")
    return re.sub(r" ; [^\\\n]*", " ", found[0])


def carry_stubs(site: Path, folder: Path) -> None:
    """Builds the stubs for the torch in `site`, with an index that names the libraries they stand for."""
    index = {}
    folder.mkdir(parents=True)
    for place, stub in build_all(load_trim(), site):
        if isinstance(stub, str):
            print(f"{place}: {stub}")
            continue
        name = f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.so"
        (folder / name).write_bytes(stub)
        index[place] = {"file": name, "bytes": (site / place).stat().st_size}
    write_json(folder / "index.json", index)


if __name__ == "__main__":
    main()
