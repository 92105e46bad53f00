"""`deploy.py rules` and `report` on what a job left in S3: the answers given on this machine, or one clear sentence."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.aws.conftest import BUCKET, FOREIGN_BUCKET, client
from tests.aws.gate import Fault, Gate
from tests.report_folders import make_job
from tests.unit.test_training_hook import hook_for, network, train

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.outputs import REPORT
from image_classifier.contract.paths import MlPaths

pytestmark = pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023
Deploy = Callable[..., tuple[int, str, str]]
ROOT = f"s3://{BUCKET}/image-classifier/jobs/flowers-1"


def upload(folder: Path, below: str) -> None:
    s3 = client("s3")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), BUCKET, f"{below}/{path.relative_to(folder)}")


@pytest.fixture
def bucket(gate: Gate) -> None:
    client("s3").create_bucket(Bucket=BUCKET)


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What smdebug wrote of two attempts of a job whose weights do not move."""
    paths = MlPaths(base=tmp_path_factory.mktemp("job"))
    for _ in range(2):
        model = network()
        hook = hook_for(paths, model, TrainConfig(profile=False, warmup_epochs=0, debug_interval=1))
        train(hook, model, epochs=5, lr=0.0)
        hook.close()
    return paths.tensors


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("finished") / "job", epochs=3, test_per_class=2)


def pack(folder: Path, archive: Path) -> Path:
    """As SageMaker packs output/data."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, ".")
    return archive


@pytest.mark.parametrize("part", ["", "/attempt-2"])
def test_a_trial_in_s3_is_judged_as_on_this_machine(part: str, bucket: None, tensors: Path, deploy: Deploy) -> None:
    upload(tensors, "image-classifier/jobs/flowers-1/tensors")
    if part:
        upload(
            tensors / "attempt-1", "image-classifier/jobs/flowers-1/tensors/attempt-20"
        )  # a name that begins like attempt-2
    local = deploy("rules", f"{tensors}{part}", "--json")
    remote = deploy("rules", f"{ROOT}/tensors{part}", "--json")
    assert remote[0] == local[0] == 0
    assert json.loads(remote[1]) == json.loads(local[1])
    verdicts = {each["rule"]: each["verdict"] for each in json.loads(remote[1])}
    assert verdicts["UnchangedTensor"] == "IssuesFound"
    assert verdicts["ExplodingTensor"] == "NoIssuesFound"


def test_rules_and_report_read_the_archive_that_sagemaker_makes(
    bucket: None, finished: Path, tmp_path: Path, project: Path, deploy: Deploy
) -> None:
    archive = pack(finished / "output" / "data", tmp_path / "output.tar.gz")
    client("s3").upload_file(str(archive), BUCKET, "image-classifier/jobs/flowers-1/output/output.tar.gz")
    client("s3").put_object(
        Bucket=BUCKET, Key="image-classifier/jobs/flowers-1/output/model.tar.gz", Body=b"not fetched"
    )
    local, remote = deploy("rules", str(finished / "output" / "data"), "--json"), deploy("rules", ROOT, "--json")
    assert remote[0] == 0
    assert json.loads(remote[1]) == json.loads(local[1])
    code, out, _ = deploy("report", ROOT)
    place = project / "runs" / "from-s3" / "flowers-1"
    assert code == 0
    assert "runs/from-s3/flowers-1/report.html" in out.replace("\n", "")
    assert (place / "report.html").is_file()
    facts = json.loads((place / REPORT.name).read_text())
    assert facts["name"] == "flowers-1"
    assert facts["outcome"]["status"] == "completed"
    assert not (place / "output.tar.gz").exists()
    code, _, _ = deploy("report", f"{ROOT}/output/output.tar.gz")
    assert code == 0
    assert [folder.name for folder in place.parent.iterdir()] == ["flowers-1"]


def test_an_output_folder_in_s3_is_reported_with_its_machine(bucket: None, finished: Path, deploy: Deploy) -> None:
    upload(finished / "output", "image-classifier/jobs/flowers-1/output")
    code, out, _ = deploy("report", f"{ROOT}/output/", "--json")
    assert code == 0
    facts = json.loads(out[out.index("{") :])
    assert facts["system"]["summary"]
    assert facts["name"] == "flowers-1"


@pytest.mark.parametrize("command", ["rules", "report"])
def test_what_cannot_be_read_from_s3_is_one_sentence_and_a_hint(
    command: str, gate: Gate, bucket: None, tensors: Path, deploy: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(uri: str) -> str:
        code, _, err = deploy(command, uri)
        message, _, hint = err.partition("hint:")
        assert code == 1
        assert message.startswith("error: ")
        assert hint.strip()
        assert "Traceback" not in err
        return " ".join(message.split())

    assert "specified bucket does not exist" in refused(f"s3://{FOREIGN_BUCKET}/jobs/1")
    assert f"{ROOT} holds neither the output nor the tensors of a training job" in refused(ROOT)
    gate.fail("s3:GET", Fault("AccessDenied", "Access Denied", 403))
    assert "not allowed to list objects v2: Access Denied" in refused(ROOT)
    upload(tensors / "attempt-1", "image-classifier/jobs/flowers-1")
    client("s3").put_object(Bucket=BUCKET, Key="image-classifier/jobs/both/1/output.tar.gz", Body=b"not an archive")
    assert "cannot be unpacked" in refused(f"s3://{BUCKET}/image-classifier/jobs/both")
    client("s3").put_object(Bucket=BUCKET, Key="image-classifier/jobs/both/2/output.tar.gz", Body=b"not an archive")
    assert "holds the output of 2 jobs" in refused(f"s3://{BUCKET}/image-classifier/jobs/both")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert "there are no AWS credentials" in refused(ROOT)


def test_tensors_alone_make_no_report(bucket: None, tensors: Path, project: Path, deploy: Deploy) -> None:
    upload(tensors / "attempt-1", "image-classifier/jobs/flowers-1/tensors/attempt-1")
    code, _, err = deploy("report", f"{ROOT}/tensors")
    assert code == 1
    assert f"{ROOT}/tensors holds no output of a training job" in " ".join(err.split())
    assert not (project / "runs").exists()
