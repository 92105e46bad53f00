"""What a job left in S3, brought to this machine: its output.tar.gz, or folders of its output or tensors."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from image_classifier.contract.errors import ConfigError, DataError
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.failures import translated
from image_classifier.sagemaker.session import MAX_CONNECTIONS, Session
from image_classifier.sagemaker.training_job import OUTPUT_ARCHIVE, extract_files
from image_classifier.sagemaker.upload import download, list_objects, split_uri

PARTS = frozenset({"output", "data", "tensors", OUTPUT_ARCHIVE})  # of a job's output: no names of jobs
_ATTEMPT = re.compile(r"attempt-\d+")
_SIGNS = re.compile(  # below what was named: smdebug's tensors, or the files a report is made of
    r"(tensors/)?(attempt-\d+/)?collections/.+"
    r"|(output/)?(data/)?(job|metrics|report)\.json|(output/)?(data/)?(history|steps)\.jsonl"
)


def job_of(uri: str) -> str:
    """The name of the job whose output `uri` names: its last part that is no part of every job's output."""
    names = [part for part in uri.removeprefix("s3://").split("/") if part]
    return next((name for name in reversed(names) if name not in PARTS and not _ATTEMPT.fullmatch(name)), "s3")


def fetch(settings: SageMakerSettings, uri: str, folder: Path) -> None:
    """Copies a job's saved output into `folder`; an output.tar.gz is unpacked.

    Args:
        uri: `s3://BUCKET/...` of a job's folder, of its output.tar.gz, or of output, output/data or tensors in it.

    Raises:
        ConfigError: `uri` names no bucket.
        DataError: nothing there was left by a job.
        AwsError: there is no such bucket, no permission, no credentials, no network.
    """
    uri = uri.rstrip("/")
    bucket, prefix = split_uri(uri)
    if not bucket:
        raise ConfigError(f"{uri} names no bucket", "s3://BUCKET/FOLDER of a job's output")
    session = Session(settings)
    below = f"{prefix}/" if prefix else ""
    keys = [key for key, _ in list_objects(session, uri) if key == prefix or key.startswith(below)]
    archives = [key for key in keys if key.rpartition("/")[2] == OUTPUT_ARCHIVE]
    if len(archives) > 1:
        listed = ", ".join(job_of(key) for key in archives[:3])
        raise DataError(f"{uri} holds the output of {len(archives)} jobs", f"name one of them: {listed}, ...")
    if archives:
        _unpack(session, f"s3://{bucket}/{archives[0]}", folder)
    elif any(_SIGNS.fullmatch(key.removeprefix(below)) for key in keys):
        _copy(session, bucket, keys, below, folder)
    else:
        raise DataError(
            f"{uri} holds neither the output nor the tensors of a training job",
            f"name the folder of a job, its {OUTPUT_ARCHIVE}, or its tensors; `aws s3 ls {uri}/` shows what is there",
        )


def _unpack(session: Session, uri: str, folder: Path) -> None:
    archive = folder / OUTPUT_ARCHIVE
    download(session, uri, archive)
    try:
        with tarfile.open(archive) as tar:
            extract_files(tar, folder)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{uri} cannot be unpacked: {error}", "is it the output of a training job?") from None
    finally:
        archive.unlink(missing_ok=True)


def _copy(session: Session, bucket: str, keys: Sequence[str], below: str, folder: Path) -> None:
    """Many at once: smdebug leaves two small files for each step."""
    s3 = session.client("s3")

    def one(key: str) -> None:
        name = key.removeprefix(below)
        if ".." in Path(name).parts:
            raise DataError(f"s3://{bucket}/{key} is no file below the folder")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with translated(f"download s3://{bucket}/{key}"):
            s3.download_file(bucket, key, str(path))

    with ThreadPoolExecutor(MAX_CONNECTIONS) as pool:
        for _ in pool.map(one, [key for key in keys if not key.endswith("/")]):
            pass
