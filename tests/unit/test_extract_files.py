import io
import tarfile
from pathlib import Path

import pytest

from image_classifier.sagemaker.training_job import extract_files


def archive(*members: tuple[str, bytes]) -> tarfile.TarFile:
    """A tar with members of (name, type), each of five bytes if it is a file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = 5 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"bytes"[: info.size]))
    file.seek(0)
    return tarfile.open(fileobj=file)


def test_files_and_folders_come_out(tmp_path: Path) -> None:
    extract_files(archive(("./", tarfile.DIRTYPE), ("./a/b.json", tarfile.REGTYPE)), tmp_path / "new")
    assert (tmp_path / "new" / "a" / "b.json").read_bytes() == b"bytes"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out", tarfile.REGTYPE),
        ("a/../../out", tarfile.REGTYPE),
        ("/out", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("pipe", tarfile.FIFOTYPE),
        ("device", tarfile.CHRTYPE),
    ],
)
def test_what_leads_out_is_refused(name: str, kind: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(tarfile.TarError):
        extract_files(archive((name, kind)), folder)
    assert list(tmp_path.rglob("*")) == [folder]
