"""Files to S3, each content once.

    PREFIX/data/FINGERPRINT/train/CLASS/photo.jpg     a data set; FINGERPRINT is of all its names and contents
    PREFIX/data/FINGERPRINT/index.json                name -> sha256, written last: the data set is complete
    PREFIX/weights/SHA256/name.pth, PREFIX/models/SHA256/model.tar.gz

A data set that is there is not sent again. Of a changed one, the files that any earlier data set has are copied inside
S3, and an interrupted upload goes on where it was: only what S3 has never seen leaves this machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_classifier.contract.errors import DataError, describe
from image_classifier.contract.files import replacing
from image_classifier.contract.text import as_text
from image_classifier.sagemaker.aws_settings import AUTO, NONE
from image_classifier.sagemaker.failures import MISSING, AwsError, describe_call, translated
from image_classifier.sagemaker.session import Session
from image_classifier.vision.folders import ImageFolders
from image_classifier.vision.image_list import SPLIT_CHANNEL

THREADS = 16
INDEX = "index.json"
EARLIER_SETS = 20  # data sets whose index is looked at for files to copy
MAX_KEY_BYTES = 900  # S3 allows 1024, the prefix needs some


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One image: its key below the data set (`train/daisy/1.jpg`), where it lies, sha256 (hex) and size in bytes; or,
    where nothing lies anywhere, its content."""

    key: str
    path: Path
    sha256: str
    size: int
    content: bytes = b""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """All images of a data set. `channels` are the splits that have a folder of their own."""

    fingerprint: str
    channels: tuple[str, ...]
    files: tuple[DataFile, ...]

    def uris(self, root: str) -> dict[str, str]:
        """Channel -> S3 folder. The slash at the end keeps `train/` from also meaning `train-old/`."""
        return {name: f"{root}/data/{self.fingerprint}/{name}/" for name in self.channels}


@dataclass(kw_only=True)
class Sent:
    """How far an upload is: files and bytes that were sent, copied inside S3, or there already."""

    total: int
    sent: int = 0
    sent_bytes: int = 0
    copied: int = 0
    present: int = 0

    @property
    def done(self) -> int:
        return self.sent + self.copied + self.present

    def describe(self) -> str:
        """`412 of 8351 files, 60.1 MB sent`."""
        parts = [f"{self.done} of {self.total} files", f"{self.sent_bytes / 1e6:.1f} MB sent"]
        if self.present:
            parts.append(f"{self.present} there already")
        if self.copied:
            parts.append(f"{self.copied} copied inside S3")
        return ", ".join(parts)


def read_data_set(folders: ImageFolders) -> DataSet:
    """Hashes all images.

    Raises:
        DataError: a file cannot be read, its name is too long for S3, or two names are the same there.
    """
    pairs = []
    for split in folders.splits:
        is_train = folders.plan is not None or (split.name == "valid" and folders.valid_split_off)
        channel = "train" if is_train else split.name
        pairs += [(f"{channel}/{as_text(path.relative_to(split.root))}", path) for path in split.paths]
    with ThreadPoolExecutor(THREADS) as threads:
        found = [*threads.map(lambda pair: _read(*pair), pairs), *_split_files(folders)]
    files = tuple(sorted(found, key=lambda file: file.key))
    if twice := [key for key, count in Counter(file.key for file in files).items() if count > 1]:
        raise DataError(f"two files have the same name in S3: {twice[0]}", "rename one of them")
    listing = "".join(f"{file.key}\0{file.sha256}\n" for file in files)
    return DataSet(
        fingerprint=hashlib.sha256(listing.encode()).hexdigest()[:16],
        channels=tuple(dict.fromkeys(file.key.partition("/")[0] for file in files)),
        files=files,
    )


def _split_files(folders: ImageFolders) -> Iterator[DataFile]:
    """What says which image of the train channel is in which split, where folders do not."""
    for name, content in ({} if folders.plan is None else folders.plan.files(as_names=True)).items():
        digest, key = hashlib.sha256(content).hexdigest(), f"{SPLIT_CHANNEL}/{name}"
        yield DataFile(key=key, path=Path(name), sha256=digest, size=len(content), content=content)


def upload_data_set(session: Session, data: DataSet, progress: Callable[[Sent], None]) -> Sent:
    """Puts a data set where `DataSet.uris` says. Raises AwsError; what arrived is not sent again next time."""
    folder = f"{session.settings.prefix.strip('/')}/data/{data.fingerprint}"
    sent = Sent(total=len(data.files))
    ensure_bucket(session)
    if _exists(session, f"{folder}/{INDEX}"):
        sent.present = sent.total
        progress(sent)
        return sent
    present = dict(_list(session, f"{folder}/"))
    missing = [file for file in data.files if present.get(f"{folder}/{file.key}") != file.size]
    sent.present = sent.total - len(missing)
    elsewhere = _earlier(session, {file.sha256 for file in missing}) if missing else {}
    progress(sent)
    with ThreadPoolExecutor(THREADS) as threads:
        futures: dict[Future[bool], DataFile] = {
            threads.submit(_place, session, file, f"{folder}/{file.key}", elsewhere.get(file.sha256)): file
            for file in missing
        }
        try:
            for future in as_completed(futures):
                if future.result():
                    sent.sent, sent.sent_bytes = sent.sent + 1, sent.sent_bytes + futures[future].size
                else:
                    sent.copied += 1
                progress(sent)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    index = {file.key: file.sha256 for file in data.files}
    body = json.dumps(index, ensure_ascii=False).encode()
    put(session, f"{folder}/{INDEX}", body)
    return sent


def put(session: Session, key: str, body: Any, **options: Any) -> None:
    """Puts an object into our bucket, encrypted as the settings say. `body`: bytes or an open file. Raises AwsError."""
    session.call("s3", "put_object", Bucket=session.bucket, Key=key, Body=body, **options, **_put_options(session))


def upload_file(session: Session, path: Path, folder: str) -> str:
    """Puts one file to `PREFIX/folder/SHA256/NAME` unless it is there; returns its S3 URI. Raises AwsError."""
    from boto3.exceptions import S3UploadFailedError

    uri = file_uri(session, path, folder)
    _, key = split_uri(uri)
    ensure_bucket(session)
    if not _exists(session, key):
        options = _put_options(session)
        try:
            with translated(f"upload {path.name}"):
                session.client("s3").upload_file(str(path), session.bucket, key, ExtraArgs=options)
        except S3UploadFailedError as error:
            raise describe_call("HTTPClientError", str(error), f"upload {path.name}") from error
    return uri


def copy_file(session: Session, source: str, target: str) -> None:
    """Copies an object of up to 5 GB inside S3, unless the target is there. Raises AwsError."""
    (from_bucket, from_key), (_, key) = split_uri(source), split_uri(target)
    if not _exists(session, key):
        origin = {"Bucket": from_bucket, "Key": from_key}
        session.call("s3", "copy_object", Bucket=session.bucket, Key=key, CopySource=origin, **_put_options(session))


def file_uri(session: Session, path: Path, folder: str) -> str:
    """Where `upload_file` puts a file."""
    name = as_text(path.name)
    return f"{session.root}/{folder}/{_read(name, path).sha256[:16]}/{name}"


def ensure_bucket(session: Session) -> None:
    """Makes the bucket when it is the `auto` one and missing. Raises AwsError when there is none, or not for us."""
    try:
        session.call("s3", "head_bucket", Bucket=session.bucket, ExpectedBucketOwner=session.account)
    except AwsError as error:
        if error.code != MISSING or session.settings.bucket != AUTO:
            raise
        place = {} if session.region == "us-east-1" else {"LocationConstraint": session.region}
        options: dict[str, Any] = {"CreateBucketConfiguration": place} if place else {}
        session.call("s3", "create_bucket", Bucket=session.bucket, **options)
        block = dict.fromkeys(
            ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True
        )
        session.call("s3", "put_public_access_block", Bucket=session.bucket, PublicAccessBlockConfiguration=block)


def download(session: Session, uri: str, path: Path) -> None:
    """Fetches an S3 object, whole or not at all. Raises AwsError, PlatformError."""
    bucket, key = split_uri(uri)
    with replacing(path) as file, translated(f"download {uri}"):
        session.client("s3").download_fileobj(bucket, key, file)


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def list_objects(session: Session, uri: str) -> Iterator[tuple[str, int]]:
    """Key and size of every object below an S3 folder. Raises AwsError."""
    bucket, prefix = split_uri(uri)
    return _list(session, prefix, bucket)


def _read(key: str, path: Path) -> DataFile:
    if len(key.encode()) > MAX_KEY_BYTES:
        raise DataError(f"the name {key[:80]}... is too long for S3", "shorten it")
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return DataFile(key=key, path=path, sha256=digest, size=file.tell())
    except OSError as error:
        raise DataError(f"cannot read {path}: {describe(error)}") from None


def _place(session: Session, file: DataFile, key: str, source: str | None) -> bool:
    """Whether the file had to be sent. S3 compares the bytes with their checksum."""
    if source is not None:
        origin = {"Bucket": session.bucket, "Key": source}
        session.call("s3", "copy_object", Bucket=session.bucket, Key=key, CopySource=origin, **_put_options(session))
        return False
    checksum = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    with io.BytesIO(file.content) if file.content else file.path.open("rb") as body:
        put(session, key, body, ChecksumSHA256=checksum)
    return True


def _earlier(session: Session, wanted: set[str]) -> Mapping[str, str]:
    """sha256 -> key, for the wanted contents that an earlier data set has."""
    prefix = f"{session.settings.prefix.strip('/')}/data/"
    reply = session.call("s3", "list_objects_v2", Bucket=session.bucket, Prefix=prefix, Delimiter="/")
    found: dict[str, str] = {}
    for folder in [item["Prefix"] for item in reply.get("CommonPrefixes", ())][:EARLIER_SETS]:
        try:
            body = session.call("s3", "get_object", Bucket=session.bucket, Key=f"{folder}{INDEX}")["Body"].read()
            index = json.loads(body)
        except (AwsError, ValueError):  # not complete, or not ours
            continue
        found |= {digest: f"{folder}{key}" for key, digest in index.items() if digest in wanted}
    return found


def _exists(session: Session, key: str) -> bool:
    try:
        session.call("s3", "head_object", Bucket=session.bucket, Key=key)
    except AwsError as error:
        if error.code == MISSING:
            return False
        raise
    return True


def _list(session: Session, prefix: str, bucket: str = "") -> Iterator[tuple[str, int]]:
    options: dict[str, Any] = {"Bucket": bucket or session.bucket, "Prefix": prefix}
    while True:
        page = session.call("s3", "list_objects_v2", **options)
        yield from ((item["Key"], item["Size"]) for item in page.get("Contents", ()))
        if not page.get("IsTruncated"):
            return
        options["ContinuationToken"] = page["NextContinuationToken"]


def _put_options(session: Session) -> dict[str, str]:
    options = {"ExpectedBucketOwner": session.account}
    if session.settings.kms_key != NONE:
        options |= {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": session.settings.kms_key}
    return options


def delete_objects(session: Session, uri: str) -> int:
    """Removes every object below an S3 folder, and returns how many. Raises AwsError."""
    bucket, _ = split_uri(uri)
    keys: Sequence[str] = [key for key, _ in list_objects(session, uri)]
    for start in range(0, len(keys), 1000):  # DeleteObjects' limit
        batch = [{"Key": key} for key in keys[start : start + 1000]]
        session.call("s3", "delete_objects", Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
    return len(keys)
