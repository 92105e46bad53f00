"""The model artifact: its only writer and its only reader.

    manifest.json        classes, preprocessing, config, metrics, versions, and size and sha256 of every other member
    model.safetensors    the weights; loading them executes no code
    golden/00.jpg ...    a few images with the probabilities training saw for them (in the manifest)

As a folder it is /opt/ml/model; as `model.tar.gz` it is what SageMaker makes of that folder. An archive is untrusted
input: it may hold these members and nothing else, and nothing is extracted by its own name or metadata.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from image_classifier.contract.errors import ArtifactError, ClassifierError, PlatformError, describe
from image_classifier.contract.files import open_plain, replacing
from image_classifier.contract.image_formats import JPEG, SUFFIXES
from image_classifier.vision.drift import Histogram
from image_classifier.vision.gate import FLOAT32_TOLERANCE, Gate
from image_classifier.vision.manifest import (
    MANIFEST,
    MAX_BYTES,
    MAX_GOLDEN,
    WEIGHTS,
    GoldenSample,
    Manifest,
    Member,
    check_member,
    checksum,
)
from image_classifier.vision.preprocess import Preprocessing
from image_classifier.vision.temperature import NONE
from image_classifier.vision.weight_checks import check_weights, check_weights_file

__all__ = [
    "ARCHIVE",
    "MANIFEST",
    "WEIGHTS",
    "Artifact",
    "GoldenSample",
    "Manifest",
    "check_answer",
    "load_model",
    "pack",
    "read_manifest",
    "unpack",
    "write_model",
]

ARCHIVE = "model.tar.gz"

_MAX_TAR_HEADER_BYTES = 64 * 1024  # of extended headers (long names, owners), which tarfile reads into memory
_CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A model folder whose checksums were verified.

    Args:
        directory: where it lies.
        fingerprint: the manifest's checksum (sha256, hex), which covers those of all other files: names the model.
    """

    directory: Path
    manifest: Manifest
    golden: tuple[GoldenSample, ...]
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.manifest.classes

    @property
    def preprocessing(self) -> Preprocessing:
        return self.manifest.preprocessing

    @property
    def weights_path(self) -> Path:
        return self.directory / WEIGHTS


def write_model(
    directory: Path,
    *,
    weights: Mapping[str, NDArray[Any]],
    classes: Sequence[str],
    preprocessing: Preprocessing,
    golden: Sequence[GoldenSample],
    config: Mapping[str, str],
    metrics: Mapping[str, float],
    data_fingerprint: str,
    versions: Mapping[str, str],
    ranges: Mapping[str, float] | None = None,
    gates: Mapping[str, Gate] | None = None,
    reference: Mapping[str, Histogram] | None = None,
    temperature: float = NONE,
    abstain_below: float = 0.0,
    created: str | None = None,
) -> Manifest:
    """Writes the artifact into `directory`, which may exist and may hold an older one.

    The manifest is written last: a folder with a manifest is complete. Files that are not the artifact's are left.

    Args:
        weights: state dict name -> array, any layout in memory.
        config: hyperparameters as strings (`TrainConfig.to_hyperparameters`).
        metrics: final numbers; one that is not finite is recorded as null.
        ranges: largest absolute value of each of `network.activations`, for int8.
        gates: number format -> what it costs.
        reference: what answers and pictures usually look like, for the drift watch.
        temperature: what the logits are divided by before they become probabilities; `golden`, `gates` and `reference`
            are of these.
        abstain_below: see Manifest.
        created: ISO 8601 time; now when None.

    Raises:
        ArtifactError: the values make no artifact that could be read again, e.g. a golden sample without numbers.
        PlatformError: a full disk or a missing permission.
    """
    check_weights(weights, classes)
    members = {f"golden/{i:02d}{_suffix(sample.name)}": sample.image for i, sample in enumerate(golden)}
    dense = {name: np.asarray(array, order="C") for name, array in weights.items()}  # safetensors ignores strides
    contents = {WEIGHTS: safetensors_numpy.save(dense), **members}
    manifest = Manifest(
        classes=tuple(classes),
        preprocessing=preprocessing,
        config=dict(config),
        metrics={name: float(value) if math.isfinite(value) else None for name, value in metrics.items()},
        data_fingerprint=data_fingerprint,
        versions=dict(versions),
        created=created or datetime.now(UTC).isoformat(timespec="seconds"),
        golden=tuple(
            (m, sample.name, tuple(map(float, sample.probabilities))) for m, sample in zip(members, golden, strict=True)
        ),
        ranges=dict(ranges or {}),
        gates=dict(gates or {}),
        reference=dict(reference or {}),
        temperature=temperature,
        abstain_below=abstain_below,
        members={name: Member(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()},
    )
    manifest.check()
    with _platform_errors():
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory / "golden", ignore_errors=True)
        (directory / "golden").mkdir(parents=True, exist_ok=True)
        for name, data in (contents | {MANIFEST: manifest.to_bytes()}).items():
            with replacing(directory / name) as file:
                file.write(data)
    return manifest


def load_model(directory: Path) -> Artifact:
    """Reads a model folder, verifying size and checksum of every member. Other files in it are never opened.

    Raises:
        ArtifactError: no model there, a member missing or changed, or a manifest that cannot be used.
    """
    try:
        data = _read(directory / MANIFEST, MAX_BYTES[MANIFEST])
    except FileNotFoundError:
        raise ArtifactError(f"there is no model in {directory}", f"a model folder holds {MANIFEST}") from None
    except OSError as error:
        raise ArtifactError(f"cannot read the model: {describe(error)}") from error
    manifest = Manifest.from_bytes(data)
    for name, member in manifest.members.items():
        _verify(directory / name, member, name)
    try:
        check_weights_file(directory / WEIGHTS, manifest.classes)
        golden = tuple(
            GoldenSample(name, (directory / member).read_bytes(), probabilities)
            for member, name, probabilities in manifest.golden
        )
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"cannot read the model: {describe(error)}") from error
    return Artifact(directory=directory, manifest=manifest, golden=golden, fingerprint=checksum(manifest.to_json()))


def check_answer(
    sample: GoldenSample,
    classes: Sequence[str],
    answer: Mapping[str, float],
    *,
    tolerance: float = FLOAT32_TOLERANCE,
) -> None:
    """Compares a complete answer, label -> probability, with the one recorded for a golden sample.

    Args:
        tolerance: of the number format it was computed in (`Manifest.tolerance`).

    Raises:
        ArtifactError: a label is missing, or a probability is off by more than `tolerance`.
    """
    if set(answer) != set(classes):
        raise ArtifactError(f"the golden sample {sample.name} was answered with other labels than the model's")
    difference = max(abs(answer[label] - p) for label, p in zip(classes, sample.probabilities, strict=True))
    if not difference <= tolerance:  # a NaN is no answer either
        raise ArtifactError(
            f"the model does not reproduce its golden sample {sample.name}: a probability is off by {difference:.3g}",
            f"at most {tolerance:.3g} is tolerated; the weights, the engine or the preprocessing differ",
        )


def pack(directory: Path, archive: Path) -> None:
    """Writes the model in `directory` as a tar.gz: verified first, atomic, the same bytes for the same model.

    Raises:
        ArtifactError: `directory` holds no intact model.
        PlatformError: a full disk or a missing permission; no partial file is left.
    """
    names = sorted((MANIFEST, *load_model(directory).manifest.members))
    with _platform_errors():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(archive) as file,
            # level 0 stores: weights do not compress, and trying takes longer than all else of an archive
            gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=0, mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name in names:
                info = tarfile.TarInfo(name)  # owner 0, mode 0644, time 0
                info.size = (directory / name).stat().st_size
                with (directory / name).open("rb") as member:
                    tar.addfile(info, member)


def unpack(archive: Path, directory: Path) -> Artifact:
    """Unpacks `archive` into the new or empty folder `directory`, all of it or nothing.

    Raises:
        ArtifactError: truncated, damaged, foreign, too large, or with members that do not belong into a model (other
            names, links, devices, pickles).
        PlatformError: a full disk, a missing permission, or `directory` holds something.
    """
    if not archive.is_file():
        raise ArtifactError(f"there is no model archive {archive}")
    with _platform_errors():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise PlatformError(f"{directory} exists and is not an empty folder", "name a folder that does not exist")
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = directory.parent / f".{directory.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            (temporary / "golden").mkdir(parents=True)
            _extract(archive, temporary)
            artifact = load_model(temporary)
            with suppress(FileNotFoundError):
                directory.rmdir()
            temporary.rename(directory)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return dataclasses.replace(artifact, directory=directory)


def read_manifest(archive: Path) -> Manifest:
    """What the manifest in an archive says, without unpacking or verifying anything else.

    Raises:
        ArtifactError: no archive of this program.
        PlatformError: it cannot be read.
    """
    try:
        with (
            _platform_errors(),
            gzip.open(archive) as zipped,
            tarfile.open(fileobj=zipped, mode="r|", tarinfo=_CheckedTarInfo, errorlevel=2) as tar,
        ):
            for info in tar:
                if info.isreg() and info.name.removeprefix("./") == MANIFEST:
                    check_member(MANIFEST, info.size)
                    source = tar.extractfile(info)
                    return Manifest.from_bytes(source.read() if source is not None else b"")
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{archive} is truncated, damaged or not a model archive") from error
    raise ArtifactError(f"{archive} holds no {MANIFEST}: it was not made by this program")


class _CheckedTarInfo(tarfile.TarInfo):
    """Refuses a header before tarfile acts on it, so that no extended header makes it read gigabytes."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            if not 0 <= info.size <= _MAX_TAR_HEADER_BYTES:
                raise ArtifactError("the archive has an oversized header")
        elif info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            raise ArtifactError(f"the archive member {info.name!r} is not a plain file")
        return info


def _extract(archive: Path, directory: Path) -> None:
    foreign = ArtifactError(
        f"{archive} is truncated, damaged or not a model archive", "train again, or fetch the file again"
    )
    seen: set[str] = set()
    try:
        with (
            open_plain(archive) as file,
            gzip.open(file) as zipped,
            tarfile.open(fileobj=zipped, mode="r|", tarinfo=_CheckedTarInfo, errorlevel=2) as tar,
        ):
            for info in tar:
                name = info.name.removeprefix("./").rstrip("/")
                if info.isdir() and name in ("", ".", "golden"):
                    continue
                if not info.isreg() or info.issparse() or name in seen:
                    raise ArtifactError(f"the archive member {info.name!r} does not belong into a model")
                check_member(name, info.size)
                seen.add(name)
                source = tar.extractfile(info)
                if source is None or len(seen) > MAX_GOLDEN:
                    raise foreign
                with (directory / name).open("xb") as target:
                    shutil.copyfileobj(source, target, _CHUNK_BYTES)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, OverflowError) as error:
        raise foreign from error
    if MANIFEST not in seen:
        raise ArtifactError(f"{archive} holds no {MANIFEST}: it was not made by this program", foreign.hint)


def _verify(path: Path, member: Member, name: str) -> None:
    try:
        with open_plain(path) as file:
            same = os.fstat(file.fileno()).st_size == member.size
            same = same and hashlib.file_digest(file, "sha256").hexdigest() == member.sha256
    except FileNotFoundError:
        raise ArtifactError(f"the model is incomplete: {name} is missing", "fetch it again") from None
    except OSError as error:
        raise ArtifactError(f"cannot read the model: {describe(error)}") from error
    if not same:
        raise ArtifactError(f"the model is damaged: {name} is not the file the manifest describes", "fetch it again")


def _read(path: Path, limit: int) -> bytes:
    with open_plain(path) as file:
        data = file.read(limit + 1)
    check_member(path.name, len(data))
    return data


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return suffix if suffix in SUFFIXES else JPEG.suffixes[0]


@contextmanager
def _platform_errors() -> Iterator[None]:
    try:
        yield
    except ClassifierError:
        raise
    except OSError as error:
        raise PlatformError(describe(error), "free some space or choose another folder") from error
