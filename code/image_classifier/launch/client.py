"""Asks an endpoint about images: one request a file, over kept connections, a few at a time."""

from __future__ import annotations

import io
import json
import math
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import urllib3

from image_classifier.contract import wire
from image_classifier.contract.errors import (
    ClassifierError,
    ConfigError,
    ImageError,
    PlatformError,
    RequestError,
    describe,
)
from image_classifier.contract.image_formats import JPEG, MEDIA_TYPE_BY_SUFFIX, SUFFIXES
from image_classifier.contract.paths import path_here
from image_classifier.contract.text import as_text
from image_classifier.launch.view import SILENT, View, tell_findings
from image_classifier.vision.contrast import contrast_note, contrast_of, contrast_of_file
from image_classifier.vision.decode import check_file_size, decode
from image_classifier.vision.folders import image_files
from image_classifier.vision.passed_over import PassedOver

CONNECTIONS = 4  # requests under way at a time: enough to keep a small endpoint busy
TIMEOUT = urllib3.Timeout(connect=5.0, read=90.0)  # SageMaker gives an invocation 60 s
BUSY = frozenset({503})  # the server's queue is full: try again
RETRIES = urllib3.Retry(
    total=3, connect=0, read=0, status_forcelist=BUSY, allowed_methods=None, backoff_factor=0.5, raise_on_status=False
)
SHRINK_SIDES = (4096, 3072, 2048, 1024)  # longer sides tried, in pixels, until a picture fits into a request
JPEG_QUALITY = 92
REMARK_SIDE = 64  # pixels: enough of a JPEG, which is decoded sooner the smaller, to see that it shows something
Ranking = tuple[tuple[str, float], ...]  # label and probability, best first
START_HINT = "start one in another terminal: deploy.py serve"


class Said(NamedTuple):
    """A good answer as it came: the ranking, the model's fingerprint, and whether the model abstains."""

    ranking: Ranking
    model: str
    abstain: bool = False


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the endpoint said about one file: label and probability, best first, and whether the model abstains; or the
    error."""

    file: str
    predictions: Ranking = ()
    model: str = ""
    abstain: bool = False
    note: str = ""
    error: str = ""
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        """As `predict --json` prints it."""
        if self.error:
            return {"file": self.file, "error": self.error, "hint": self.hint}
        ranked = [{"label": label, "probability": probability} for label, probability in self.predictions]
        unsure = {"abstain": True} if self.abstain else {}
        return {"file": self.file, "predictions": ranked, **unsure, "model": self.model} | (
            {"note": self.note} if self.note else {}
        )


class Connection(ABC):
    """A connection to one endpoint. Threads may share it."""

    url: str
    """The endpoint's address, for people."""

    @abstractmethod
    def invoke(self, image: bytes, *, content_type: str, top_k: int) -> Said:
        """Sends one image.

        Raises:
            RequestError: the endpoint refused this image.
            PlatformError: nothing answers, or not as our endpoint does.
        """

    def predict(self, file: Path, *, top_k: int) -> Answer:
        """Asks about one file. Errors of this one image are in the answer; raises PlatformError for all others."""
        try:
            image, content_type, note = read_image(file)
            said = self.invoke(image, content_type=content_type, top_k=top_k)
        except RequestError as error:
            return Answer(file=as_text(file), error=error.message, hint=error.hint)
        return Answer(file=as_text(file), predictions=said.ranking, model=said.model, abstain=said.abstain, note=note)

    def predict_all(self, files: Sequence[Path], *, top_k: int) -> Iterator[Answer]:
        """The answers in the order of `files`. Raises PlatformError when the endpoint is not there."""
        with ThreadPoolExecutor(max_workers=CONNECTIONS) as threads:
            futures = [threads.submit(self.predict, file, top_k=top_k) for file in files]
            try:
                for future in futures:
                    yield future.result()
            except BaseException:  # Ctrl-C, or nobody wants the rest
                threads.shutdown(cancel_futures=True)
                raise


class Client(Connection):
    """An endpoint with an address of its own, as `serve` starts one on this machine."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError when `url` is no HTTP address."""
        try:
            parsed = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError:
            parsed = urllib3.util.Url()
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise ConfigError(f"{url!r} is no address of an endpoint", "it looks like http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self._invocations = self.url if self.url.endswith("/invocations") else f"{self.url}/invocations"
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, block=True, retries=RETRIES, timeout=TIMEOUT)

    def invoke(self, image: bytes, *, content_type: str, top_k: int) -> Said:
        """Asks over HTTP. Raises as `Connection.invoke`."""
        headers = {"Content-Type": content_type, "Accept": wire.JSON_TYPE, wire.TOP_K_HEADER: str(top_k)}
        try:
            reply = self._pool.request("POST", self._invocations, body=image, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, (urllib3.exceptions.ReadTimeoutError, urllib3.exceptions.ProtocolError)):
                raise PlatformError(f"the endpoint at {self.url} broke off: {type(reason).__name__}") from None
            raise PlatformError(f"no endpoint answers at {self.url}", START_HINT) from None
        try:
            if reply.status == 200:
                return read_answer(reply.data)
            refusal = read_refusal(reply.data)
        except ValueError:
            raise PlatformError(
                f"what answers at {self.url} is not our endpoint (HTTP {reply.status})", START_HINT
            ) from None
        raise refused(reply.status, *refusal)


def read_answer(body: bytes) -> Said:
    """Takes a good answer apart. Raises ValueError when it is not ours."""
    try:
        document = json.loads(body)
        ranking = tuple((str(each["label"]), float(each["probability"])) for each in document["predictions"])
        if not all(math.isfinite(probability) for _, probability in ranking):
            raise ValueError("a probability is not a number")
        return Said(ranking, str(document["model"]), document.get("abstain") is True)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(describe(error)) from None


def read_refusal(body: bytes | str) -> tuple[str, str]:
    """Sentence and hint of a refusal. Raises ValueError when it is not ours."""
    try:
        document = json.loads(body)
        return str(document["error"]), str(document.get("hint", ""))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(describe(error)) from None


def refused(status: int, message: str, hint: str) -> ClassifierError:
    """The error of a refusal: about this image (4xx), or about the endpoint."""
    return PlatformError(message, hint) if status >= 500 else RequestError(message, hint)


def read_image(file: Path) -> tuple[bytes, str, str]:
    """The bytes to send, their media type, and a note when the picture shows next to nothing, or was made smaller to
    fit into a request.

    Raises:
        ImageError, TooLarge: it cannot be read, or is too large and cannot be made smaller.
    """
    check_file_size(file)
    try:
        mode = file.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # a pipe, as a shell makes one of a command's output, is welcome
            raise ImageError("it is a device")
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot be read: {describe(error).partition(':')[0]}") from None
    if not data:
        raise ImageError("the file is empty (zero bytes)")
    if len(data) <= wire.MAX_BODY_BYTES:
        return data, MEDIA_TYPE_BY_SUFFIX.get(file.suffix.lower(), wire.GENERIC_TYPES[0]), _remark(data)
    for side in SHRINK_SIDES:
        picture = decode(data, min_side=side)
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, JPEG.pillow, quality=JPEG_QUALITY)
        if buffer.tell() <= wire.MAX_BODY_BYTES:
            width, height = picture.size
            note = f"sent as {width}x{height}, the file has {len(data) / 1e6:.1f} MB"
            if remark := contrast_note(contrast_of(picture)):
                note = f"{remark}; {note}"
            return buffer.getvalue(), JPEG.media_types[0], note
    raise ImageError("the picture cannot be made to fit into a request")


def _remark(data: bytes) -> str:
    """A remark on a picture that shows next to nothing; empty for others, and for what the endpoint will refuse."""
    try:
        return contrast_note(contrast_of_file(data, decode(data, min_side=REMARK_SIDE)))
    except ClassifierError:
        return ""


def find_images(paths: Sequence[Path], view: View = SILENT) -> list[Path]:
    """The files to ask about: those named, and all images below the folders named.

    Args:
        view: is told what lies in the folders and is no image.

    Raises:
        ConfigError: there is no image in a folder.
    """
    found: list[Path] = []
    for path in map(path_here, paths):
        if path.is_dir():
            over = PassedOver(as_text(path))
            below = sorted(image_files(path, over))
            tell_findings(over.findings(), view)
            if not below:
                raise ConfigError(f"there are no images in {path}", f"looked for {', '.join(SUFFIXES)}")
            found += below
        else:
            found.append(path)
    return found
