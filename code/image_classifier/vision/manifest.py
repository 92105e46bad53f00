"""What `manifest.json` says, and the rules a model must keep: which files it has, how large, and what they mean.

Knows nothing of folders and archives; `artifact` reads and writes those.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from image_classifier.contract.errors import ArtifactError, describe
from image_classifier.contract.image_formats import SUFFIXES
from image_classifier.vision import gate, network, temperature
from image_classifier.vision.drift import STATISTICS, Histogram
from image_classifier.vision.gate import Gate
from image_classifier.vision.preprocess import Preprocessing

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"

_MIB = 1024 * 1024
_GOLDEN = re.compile(rf"golden/[0-9]{{2}}({'|'.join(map(re.escape, SUFFIXES))})")
MAX_BYTES = {MANIFEST: 16 * _MIB, WEIGHTS: 1024 * _MIB}  # ResNet50 with 100,000 classes has 0.9 GiB
_MAX_GOLDEN_BYTES = 8 * _MIB  # the largest body an endpoint takes is 6 MiB
MAX_GOLDEN = 100


@dataclass(frozen=True)
class GoldenSample:
    """An image and what training answered for it.

    Args:
        name: where the image came from, for messages only, e.g. `tulips/0042.jpg`.
        image: the file's bytes, in one of the accepted formats.
        probabilities: one a class, in the order of the classes, summing to 1.
    """

    name: str
    image: bytes
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Member:
    """Size in bytes and sha256 (hex) of one file of the artifact."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` says.

    Args:
        classes: labels in the order of the network's outputs.
        precision: number format of the weights.
        config: hyperparameters of the training, as strings.
        metrics: final numbers of the training; None for one that was not finite.
        data_fingerprint: sha256 over the data set's listing (`folders.fingerprint`).
        versions: package -> version that trained the model.
        created: ISO 8601 time, UTC.
        golden: (member, original name, probabilities) of each golden sample.
        members: every file of the artifact but the manifest.
        ranges: largest absolute value of each of `network.activations`, for int8; empty where nobody measured it.
        gates: number format -> what it costs; older models have none.
        reference: what answers and pictures usually look like (`drift.reference_of`); older models have none.
        temperature: what the logits are divided by before they become probabilities (`vision/temperature.py`).
        abstain_below: an answer whose most probable class has less than this says that the model abstains; 0 for never.
    """

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    config: Mapping[str, str]
    metrics: Mapping[str, float | None]
    data_fingerprint: str
    versions: Mapping[str, str]
    created: str
    golden: tuple[tuple[str, str, tuple[float, ...]], ...]
    members: Mapping[str, Member]
    architecture: str = network.NAME
    precision: str = gate.FLOAT32
    ranges: Mapping[str, float] = field(default_factory=dict)
    gates: Mapping[str, Gate] = field(default_factory=dict)
    reference: Mapping[str, Histogram] = field(default_factory=dict)
    temperature: float = temperature.NONE
    abstain_below: float = 0.0
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values. Without the last five they are those of older models, as is the checksum."""
        values = dataclasses.asdict(self) | {"preprocessing": self.preprocessing.to_json()}
        if self.temperature == temperature.NONE:
            del values["temperature"]
        optional = ("ranges", "gates", "reference", "abstain_below")
        return {name: value for name, value in values.items() if value or name not in optional}

    def abstains(self, probability: float) -> bool:
        """Whether an answer whose most probable class has this probability is none to rely on."""
        return probability < self.abstain_below

    def refusal(self, precision: str) -> str:
        """Why a server should not take a number format of its own accord; empty when it may."""
        if precision == self.precision:
            return ""
        found = self.gates.get(precision)
        return "the model does not say what it costs" if found is None else found.refusal

    def tolerance(self, precision: str) -> float:
        """Largest difference of a golden sample's probability from the recorded one, in a number format."""
        if precision == self.precision == gate.FLOAT32:
            return gate.FLOAT32_TOLERANCE
        found = self.gates.get(precision)
        return gate.UNMEASURED_TOLERANCE if found is None else found.tolerance

    @property
    def widest_tolerance(self) -> float:
        """Of the number formats that a server may take: for an endpoint that does not say which it took."""
        formats = {self.precision, *self.gates}
        return max(self.tolerance(each) for each in formats if not self.refusal(each))

    def to_bytes(self) -> bytes:
        """The file's bytes: UTF-8 JSON with a checksum of itself, the same for the same values."""
        values = self.to_json()
        values["checksum"] = checksum(values)
        return (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Reads and checks a manifest. Raises ArtifactError on anything `to_bytes` would not write."""
        try:
            values = json.loads(data)
            version, expected = values["format_version"], values.pop("checksum")
            actual = checksum(values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{MANIFEST} is not the manifest of a model ({describe(error)})") from error
        if not isinstance(version, int) or version < 1:
            raise ArtifactError(f"{MANIFEST} has the format version {version!r}")
        if version > FORMAT_VERSION:
            raise ArtifactError(
                f"the model has format version {version}, this program reads up to {FORMAT_VERSION}",
                "update this program, or train the model again with it",
            )
        if expected != actual:
            raise ArtifactError(f"the model is damaged: {MANIFEST} is not as it was written", "fetch it again")
        try:
            manifest = cls._from_json(values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"{MANIFEST} is incomplete or damaged ({describe(error)})") from error
        manifest.check()
        return manifest

    @classmethod
    def _from_json(cls, values: Mapping[str, Any]) -> Manifest:
        golden = tuple(
            (str(member), str(name), tuple(float(p) for p in probabilities))
            for member, name, probabilities in values["golden"]
        )
        return cls(
            classes=tuple(_text(name) for name in values["classes"]),
            preprocessing=Preprocessing.from_json(values["preprocessing"]),
            config={_text(k): _text(v) for k, v in values["config"].items()},
            metrics={_text(k): None if v is None else float(v) for k, v in values["metrics"].items()},
            data_fingerprint=_text(values["data_fingerprint"]),
            versions={_text(k): _text(v) for k, v in values["versions"].items()},
            created=_text(values["created"]),
            golden=golden,
            members={_text(k): Member(int(v["size"]), _text(v["sha256"])) for k, v in values["members"].items()},
            architecture=_text(values["architecture"]),
            precision=_text(values["precision"]),
            ranges={_text(k): float(v) for k, v in values.get("ranges", {}).items()},
            gates={_text(k): Gate.from_json(v) for k, v in values.get("gates", {}).items()},
            reference={_text(k): Histogram.from_json(v) for k, v in values.get("reference", {}).items()},
            temperature=float(values.get("temperature", temperature.NONE)),
            abstain_below=float(values.get("abstain_below", 0.0)),
            format_version=FORMAT_VERSION,
        )

    def check(self) -> None:
        """Raises ArtifactError when the values contradict each other or break a limit."""
        if self.architecture != network.NAME:
            raise ArtifactError(f"the model is a {self.architecture}, this program runs {network.NAME}")
        if len(self.classes) < 2 or len(set(self.classes)) != len(self.classes):
            raise ArtifactError("the manifest does not name two or more different classes")
        if any(not name or not _is_utf8(name) for name in self.classes):
            raise ArtifactError("a class of the manifest has no name, or one that is no text")
        if not self.golden:
            raise ArtifactError("the model has no golden sample: nothing proves what it answers", "train it again")
        expected = {WEIGHTS, *(member for member, _, _ in self.golden)}
        if set(self.members) != expected or len(expected) != 1 + len(self.golden):
            raise ArtifactError("the manifest lists other files than the weights and the golden samples")
        for name, member in self.members.items():
            check_member(name, member.size)
            if member.size == 0:
                raise ArtifactError(f"{name} is empty (zero bytes)")
        self._check_ranges()
        if self.reference and self.reference.keys() != set(STATISTICS):
            raise ArtifactError("the manifest's reference for the drift watch is of other statistics")
        if not temperature.usable(self.temperature) or not 0 <= self.abstain_below <= 1:
            raise ArtifactError(
                "the temperature, or the limit below which to abstain, in the manifest is no such number"
            )
        for _, name, probabilities in self.golden:
            _check_probabilities(name, probabilities, len(self.classes))

    def _check_ranges(self) -> None:
        if self.ranges and self.ranges.keys() != network.activations().keys():
            raise ArtifactError(f"the ranges in the manifest are not those of a {network.TITLE}")
        if not all(math.isfinite(most) and most > 0 for most in self.ranges.values()):
            raise ArtifactError("a range in the manifest is no number above 0")
        if (gate.INT8 in self.gates) != bool(self.ranges):
            raise ArtifactError("the manifest has ranges for int8 without what they cost, or the other way round")


def checksum(values: Mapping[str, Any]) -> str:
    """sha256 (hex) of the manifest's values in one canonical form; names the model, whose files' sums it covers."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_member(name: str, size: int) -> None:
    """Raises ArtifactError when a model has no file called `name`, or none of `size` bytes."""
    limit = MAX_BYTES.get(name, _MAX_GOLDEN_BYTES if _GOLDEN.fullmatch(name) else None)
    if limit is None:
        raise ArtifactError(f"the file {name!r} does not belong into a model")
    if not 0 <= size <= limit:
        raise ArtifactError(f"{name} is too large: {size / _MIB:.0f} MiB, at most {limit // _MIB} are accepted")


def _check_probabilities(name: str, probabilities: Sequence[float], num_classes: int) -> None:
    if len(probabilities) != num_classes:
        raise ArtifactError(f"the golden sample {name} has {len(probabilities)} numbers for {num_classes} classes")
    if not all(math.isfinite(p) and 0 <= p <= 1 for p in probabilities) or abs(sum(probabilities) - 1) > 1e-3:
        raise ArtifactError(f"the probabilities of the golden sample {name} are not probabilities")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    value.encode()  # a lone surrogate would fail later, in the middle of an answer
    return value
