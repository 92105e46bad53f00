"""The model artifact: what is written is read back, and nothing else is accepted."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.full_disk import no_file_larger_than

from image_classifier.contract.errors import ArtifactError, PlatformError
from image_classifier.vision.artifact import Artifact, GoldenSample, load_model, pack, unpack, write_model
from image_classifier.vision.manifest import checksum
from image_classifier.vision.preprocess import Preprocessing

CLASSES = ("daisy", "été", "two words")
GOLDEN = (
    GoldenSample("daisy/1.PNG", b"png bytes", (0.5, 0.25, 0.25)),
    GoldenSample("x", b"jpg bytes", (0.0, 0.0, 1.0)),
)
WEIGHTS: dict[str, NDArray[Any]] = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.num_batches_tracked": np.array(7, dtype=np.int64),
}


def write(directory: Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "weights": WEIGHTS,
        "classes": CLASSES,
        "preprocessing": Preprocessing.for_image_size(64),
        "golden": GOLDEN,
        "config": {"lr": "0.01"},
        "metrics": {"test:accuracy": 0.5, "test:loss": float("nan")},
        "data_fingerprint": "f00d",
        "versions": {"torch": "2"},
        "created": "2026-01-01T00:00:00+00:00",
    }
    write_model(directory, **(arguments | changes))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def archive(model: Path, tmp_path: Path) -> Path:
    pack(model, tmp_path / "model.tar.gz")
    return tmp_path / "model.tar.gz"


def edit_manifest(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((model / "manifest.json").read_text(encoding="utf-8"))
    change(values)
    if "checksum" in values:
        values["checksum"] = checksum({name: value for name, value in values.items() if name != "checksum"})
    (model / "manifest.json").write_text(json.dumps(values), encoding="utf-8")


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def tar_of(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]], **options: Any) -> Path:
    with tarfile.open(path, "w:gz", **options) as tar:
        for info, data in entries:
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def check_is_the_model(artifact: Artifact) -> None:
    assert artifact.classes == CLASSES
    assert artifact.preprocessing == Preprocessing.for_image_size(64)
    assert artifact.golden == GOLDEN
    assert artifact.manifest.metrics == {"test:accuracy": 0.5, "test:loss": None}
    loaded = load_file(artifact.weights_path)
    assert loaded.keys() == WEIGHTS.keys()
    assert all((loaded[name] == WEIGHTS[name]).all() and loaded[name].shape == WEIGHTS[name].shape for name in WEIGHTS)


def test_round_trip_through_folder_and_archive(model: Path, archive: Path, tmp_path: Path) -> None:
    check_is_the_model(load_model(model))
    artifact = unpack(archive, tmp_path / "new" / "model")
    check_is_the_model(artifact)
    assert artifact.directory == tmp_path / "new" / "model"
    assert artifact.fingerprint == load_model(model).fingerprint
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_same_model_gives_the_same_archive(archive: Path, tmp_path: Path) -> None:
    write(tmp_path / "again", weights=dict(reversed(WEIGHTS.items())))
    pack(tmp_path / "again", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == archive.read_bytes()


def test_memory_layout_of_the_weights_does_not_matter(tmp_path: Path) -> None:
    channels_last = {**WEIGHTS, "conv.weight": np.asarray(WEIGHTS["conv.weight"], order="F")}
    write(tmp_path / "model", weights=channels_last)
    check_is_the_model(load_model(tmp_path / "model"))


def test_writing_again_replaces_the_older_model_and_leaves_other_files(model: Path) -> None:
    (model / "notes.txt").write_text("mine")
    write(model, golden=GOLDEN[:1])
    assert len(load_model(model).golden) == 1
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert files == {"manifest.json", "model.safetensors", "golden/00.png", "notes.txt"}


def test_archive_as_sagemaker_makes_it_is_accepted(archive: Path, tmp_path: Path) -> None:
    """SageMaker runs tar over the folder: `./` before names, entries for folders, owners, times, other tar formats."""
    for name, tar_format in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        entries = [(entry("./", tarfile.DIRTYPE), b""), (entry("./golden", tarfile.DIRTYPE), b"")]
        entries += [(entry(f"./{member}"), data) for member, data in members(archive).items()]
        for info, _ in entries:
            info.mtime, info.uid, info.uname, info.mode = 1.5, 10**7, "ünïcode", 0o600
        made = tar_of(tmp_path / f"{name}.tar.gz", entries, format=tar_format)
        check_is_the_model(unpack(made, tmp_path / name))


@pytest.mark.parametrize(
    "bad",
    [
        entry("../evil"),
        entry("/tmp/evil"),
        entry("golden/../../evil"),
        entry("golden/00.png/../../x"),
        entry("model.pt"),
        entry("model.pkl"),
        entry("code/inference.py"),
        entry("golden/100.jpg"),
        entry("model.safetensors", tarfile.SYMTYPE, "/etc/passwd"),
        entry("golden/05.jpg", tarfile.LNKTYPE, "manifest.json"),
        entry("golden", tarfile.SYMTYPE, "/tmp"),
        entry("golden/05.jpg", tarfile.CHRTYPE),
        entry("golden/05.jpg", tarfile.FIFOTYPE),
        entry("golden/05.jpg", tarfile.GNUTYPE_SPARSE),
        entry("evil", tarfile.DIRTYPE),
        entry("manifest.json"),  # a second one
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_member_that_does_not_belong_is_refused(archive: Path, tmp_path: Path, bad: tarfile.TarInfo) -> None:
    good = [(entry(name), data) for name, data in members(archive).items()]
    hostile = tar_of(tmp_path / "hostile.tar.gz", [*good, (bad, b"evil")])
    with pytest.raises(ArtifactError, match=r"does not belong into a model|is not a plain file"):
        unpack(hostile, tmp_path / "out" / "model")
    assert not list((tmp_path / "out").iterdir())
    assert not list(tmp_path.rglob("evil"))


def test_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    zeros = 3 * 1024**3
    for name, kind in (("manifest.json", tarfile.REGTYPE), ("golden/00.jpg", tarfile.REGTYPE), ("x", tarfile.XHDTYPE)):
        info = entry(name, kind)
        info.size = zeros
        bomb = tmp_path / "bomb.tar.gz"
        with gzip.open(bomb, "wb", compresslevel=1) as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.write(bytes(1024**2))  # as much of the 3 GB as a reader that trusts the header needs to begin
        with pytest.raises(ArtifactError, match=r"too large|oversized header"):
            unpack(bomb, tmp_path / "out")


def test_truncated_and_damaged_archives_are_refused_everywhere(archive: Path, tmp_path: Path) -> None:
    data, rng = archive.read_bytes(), random.Random(0)
    broken = tmp_path / "broken.tar.gz"
    for length in [0, 1, 10, *(rng.randrange(len(data) - 64) for _ in range(40))]:
        broken.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            unpack(broken, tmp_path / "out")
    plain, messages = gzip.decompress(data), []
    for _ in range(100):
        damaged = bytearray(plain)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        broken.write_bytes(gzip.compress(damaged, 1))
        try:
            check_is_the_model(unpack(broken, tmp_path / "out"))  # the bit was one of padding, or of a file's date
            shutil.rmtree(tmp_path / "out")
        except ArtifactError as error:
            messages.append(error.message)
    assert len(messages) > 20
    assert not [message for message in messages if "tmp" in message.replace(str(broken), "")]  # no temporary folder
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.tar.gz", "broken.tar.gz"}


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\x03\x04 a zip", gzip.compress(b"no tar"), gzip.compress(bytes(10240))],
    ids=["empty", "a zip", "no tar", "an empty tar"],
)
def test_foreign_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"not a model archive|was not made by this program"):
        unpack(tmp_path / "a", tmp_path / "out")
    with pytest.raises(ArtifactError, match="there is no model archive"):
        unpack(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ArtifactError, match="there is no model in"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "golden/00.png", "golden/01.jpg"])
def test_changed_or_missing_member_is_named(model: Path, name: str) -> None:
    data = (model / name).read_bytes()
    (model / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"damaged: {name}"):
        load_model(model)
    (model / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load_model(model)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format_version=2), "format version 2, this program reads up to 1"),
        (lambda m: m.update(format_version="1"), "format version"),
        (lambda m: m.pop("checksum"), "not the manifest of a model"),
        (lambda m: m.pop("format_version"), "not the manifest of a model"),
        (lambda m: m.pop("classes"), "incomplete or damaged"),
        (lambda m: m.update(classes=["a", "a", "b"]), "two or more different classes"),
        (lambda m: m.update(classes=["a", 1, "b"]), "incomplete or damaged"),
        (lambda m: m.update(classes=["a", "\ud800", "b"]), "incomplete or damaged"),
        (lambda m: m.update(classes=["a", "b"]), "has 3 numbers for 2 classes"),
        (lambda m: m.update(architecture="vit"), "is a vit"),
        (lambda m: m["members"].update({"../../etc/passwd": {"size": 1, "sha256": ""}}), "lists other files"),
        (lambda m: m["members"].pop("model.safetensors"), "lists other files"),
        (lambda m: m["golden"][0].__setitem__(2, [0.5, 0.4, float("nan")]), "are not probabilities"),
        (lambda m: m["preprocessing"].update(std=[0, 1, 1]), "preprocessing in the manifest is wrong"),
        (lambda m: m["members"]["model.safetensors"].update(size=10**13), "too large"),
    ],
)
def test_manifest_that_cannot_be_used_is_refused(model: Path, change: Callable[[Any], object], sentence: str) -> None:
    edit_manifest(model, change)
    with pytest.raises(ArtifactError, match=sentence):
        load_model(model)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1}'])
def test_manifest_that_is_no_manifest_is_refused(model: Path, data: bytes) -> None:
    (model / "manifest.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"manifest\.json is"):
        load_model(model)


def test_weights_that_are_no_safetensors_are_refused(model: Path) -> None:
    pickled = b"\x80\x04\x95 a pickle with a correct checksum"
    (model / "model.safetensors").write_bytes(pickled)
    member = {"size": len(pickled), "sha256": hashlib.sha256(pickled).hexdigest()}
    edit_manifest(model, lambda m: m["members"].update({"model.safetensors": member}))
    with pytest.raises(ArtifactError, match="cannot read the model"):
        load_model(model)


def test_diverged_golden_sample_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="are not probabilities"):
        write(tmp_path / "model", golden=[GoldenSample("a.jpg", b"x", (float("nan"),) * 3)])
    assert not (tmp_path / "model").exists()


def test_full_disk_is_a_sentence_and_leaves_nothing_half_written(model: Path, archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with no_file_larger_than(100):
        with pytest.raises(PlatformError, match="File too large"):
            write(tmp_path / "new")
        with pytest.raises(PlatformError, match="File too large"):
            pack(model, archive)
        with pytest.raises(PlatformError, match="File too large"):
            unpack(archive, tmp_path / "unpacked")
    assert archive.read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert not (tmp_path / "new" / "manifest.json").exists()
    assert not (tmp_path / "unpacked").exists()


def test_unpacking_over_something_is_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy" / "mine").write_text("")
    with pytest.raises(PlatformError, match="is not an empty folder"):
        unpack(archive, tmp_path / "busy")
    (tmp_path / "empty").mkdir()
    check_is_the_model(unpack(archive, tmp_path / "empty"))


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no golden sample": ({"golden": ()}, "no golden sample"),
    "a NaN": ({"weights": WEIGHTS | {"x": np.array([1.0, np.nan], np.float32)}}, "x hold a number that is not finite"),
    "an infinity": ({"weights": WEIGHTS | {"x": np.array([np.inf], np.float16)}}, "x hold a number that is not finite"),
    "fewer classes": ({"weights": WEIGHTS | {"fc.bias": np.zeros(4, np.float32)}}, "4 outputs for 3 classes"),
    "more classes": ({"weights": WEIGHTS | {"fc.weight": np.zeros((2, 8), np.float32)}}, "2 outputs for 3 classes"),
    "no weights": ({"weights": {}}, "no weights"),
    "no axis": ({"weights": WEIGHTS | {"fc.bias": np.array(1, np.float32)}}, "0 outputs for 3 classes"),
    "a number too large": ({"weights": WEIGHTS | {"x": np.array([1e300])}}, "x hold a number that is not finite"),
    "long doubles": ({"weights": WEIGHTS | {"x": np.zeros(1, np.longdouble)}}, "x are of the type"),
    "an empty image": ({"golden": [GoldenSample("a.jpg", b"", (0.5, 0.25, 0.25))]}, "golden/00.jpg is empty"),
    "a class without a name": ({"classes": ("a", "", "c")}, "has no name"),
    "a class that is no text": ({"classes": ("a", "\udce9", "c")}, "is no text"),
    "complex numbers": ({"weights": WEIGHTS | {"x": np.zeros(2, np.complex64)}}, "x are of the type complex64"),
}


@pytest.mark.parametrize(("changes", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_could_prove_nothing_is_not_written(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ArtifactError, match=sentence):
        write(tmp_path, **changes)
    assert not (tmp_path / "manifest.json").exists()


def replace_weights(model: Path, data: bytes) -> None:
    """As somebody would who knows the format: with all checksums right."""
    (model / "model.safetensors").write_bytes(data)
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(model, lambda values: values["members"].update({"model.safetensors": entry}))


def safetensors_of(kind: str, shape: list[int], data: bytes, name: str = "x") -> bytes:
    header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (safetensors_of("BF16", [2], b"\x80\x3f" * 2), "x are of the type BF16"),
        (safetensors_of("F8_E4M3", [2], b"\x38" * 2), "x are of the type F8_E4M3"),
        (safetensors_of("F32", [1], np.array([np.nan], "<f4").tobytes()), "x hold a number that is not finite"),
        (safetensors_of("F32", [2], bytes(8), "fc.bias"), "2 outputs for 3 classes"),
        (safetensors_of("F32", [], bytes(4), "fc.bias"), "0 outputs for 3 classes"),
        (safetensors_of("F64", [1], np.array([1e300], "<f8").tobytes()), "x hold a number that is not finite"),
        (b"\2" + bytes(7) + b"{}", "no weights"),
    ],
    ids=["bfloat16", "float8", "NaN", "outputs", "no axis", "a number too large", "no weights"],
)
def test_a_model_that_could_prove_nothing_is_not_loaded(model: Path, data: bytes, sentence: str) -> None:
    replace_weights(model, data)
    with pytest.raises(ArtifactError, match=sentence):
        load_model(model)


def test_a_model_without_golden_samples_is_not_loaded(model: Path) -> None:
    def drop(values: dict[str, Any]) -> None:
        values["golden"] = []
        values["members"] = {name: each for name, each in values["members"].items() if not name.startswith("golden/")}

    edit_manifest(model, drop)
    with pytest.raises(ArtifactError, match="no golden sample"):
        load_model(model)
