"""What a checkpoint folder holds, survives and refuses."""

from __future__ import annotations

import concurrent.futures
import copy
from pathlib import Path

import pytest
import torch
from tests.full_disk import no_file_larger_than
from tests.other_values import other_value
from torch import nn

from image_classifier.contract.config import TrainConfig, parameter, parameters
from image_classifier.contract.errors import JobError, JobStopped, PlatformError
from image_classifier.training.checkpoint import Checkpoints, Progress, identity
from image_classifier.training.optim import make_optimizer

CONFIG = TrainConfig(weights="none")
DEFAULT = TrainConfig()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(300, 100)


def save(folder: Path, model: nn.Module, *, epoch: int, config: TrainConfig = CONFIG, data: str = "d") -> None:
    checkpoints = Checkpoints(folder, identity(config, data))
    checkpoints.save(Progress(epoch=epoch), model, make_optimizer(model, config), {"w": torch.ones(1)})


def load_epoch(folder: Path, *, config: TrainConfig = CONFIG, data: str = "d") -> int | None:
    checkpoint = Checkpoints(folder, identity(config, data)).load()
    return None if checkpoint is None else checkpoint.progress.epoch


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_progress_and_weights_come_back(tmp_path: Path, model: nn.Module) -> None:
    progress = Progress(epoch=3, step=5, loss_sum=0.1, history=[{"epoch": 1}], unreadable={"a.jpg": "empty"})
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(progress, model, make_optimizer(model, CONFIG), {"w": torch.ones(1)})
    checkpoint = checkpoints.load()
    assert checkpoint is not None
    assert checkpoint.progress == progress
    assert torch.equal(checkpoint.model["weight"], model.weight)
    assert torch.equal(checkpoint.best["w"], torch.ones(1))


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw"])
def test_a_checkpoint_written_behind_the_training_holds_what_was_when_it_was_asked_for(
    tmp_path: Path, model: nn.Module, optimizer_name: str
) -> None:
    progress, optimizer = Progress(epoch=2), make_optimizer(model, CONFIG.replace(optimizer=optimizer_name))

    def step() -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 300)).sum().backward()
        optimizer.step()

    step()
    expected, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save_behind(progress, model, optimizer, {"w": torch.ones(1)})
    step()
    progress.start_epoch(3)
    checkpoints.finish(Progress(epoch=1), {})  # waits for what is being written, and keeps the newest
    checkpoints.settle()
    found = checkpoints.load()
    assert found is not None
    assert found.progress == Progress(epoch=2)
    torch.testing.assert_close(found.model, dict(expected), rtol=0, atol=0)
    torch.testing.assert_close(found.optimizer["state"], moments["state"], rtol=0, atol=0)
    assert found.optimizer["param_groups"] == moments["param_groups"]


def test_a_checkpoint_that_could_not_be_written_behind_the_training_ends_the_job_at_the_next(
    tmp_path: Path, model: nn.Module
) -> None:
    checkpoints, optimizer = Checkpoints(tmp_path, {}), make_optimizer(model, CONFIG)
    checkpoints.save(Progress(epoch=1), model, optimizer, {})
    with no_file_larger_than(10_000):
        checkpoints.save_behind(Progress(epoch=2), model, optimizer, {})
        with pytest.raises(PlatformError, match="cannot write"):
            checkpoints.save_behind(Progress(epoch=3), model, optimizer, {})
    assert [path.name for path in files(tmp_path)] == ["epoch-00001-step-0000000.ckpt"]


@pytest.mark.parametrize("room", [True, False])
def test_a_job_that_stops_after_a_checkpoint_failed_saves_its_state_if_there_is_room_by_then(
    tmp_path: Path, model: nn.Module, room: bool, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, optimizer = Checkpoints(tmp_path, {}), make_optimizer(model, CONFIG)
    with no_file_larger_than(10_000):
        checkpoints.save_behind(Progress(epoch=2), model, optimizer, {})
        assert checkpoints._writing is not None
        concurrent.futures.wait([checkpoints._writing])
        if not room:
            with pytest.raises(PlatformError, match="cannot write"):
                checkpoints.save(Progress(epoch=3), model, optimizer, {})
    if room:
        checkpoints.save(Progress(epoch=3), model, optimizer, {})
        assert not checkpoints.due  # so soon after it
    assert "a checkpoint was not written: cannot write" in caplog.text
    assert load_epoch_of(tmp_path) == (3 if room else None)


def load_epoch_of(folder: Path) -> int | None:
    checkpoint = Checkpoints(folder, {}).load()
    return None if checkpoint is None else checkpoint.progress.epoch


def test_two_newest_are_kept_and_a_killed_writers_leftover_is_removed(tmp_path: Path, model: nn.Module) -> None:
    (tmp_path / ".epoch-00001-step-0000000.ckpt.77.tmp").touch()
    for epoch in (9, 10, 11):
        save(tmp_path, model, epoch=epoch)
    assert [path.name for path in files(tmp_path)] == ["epoch-00010-step-0000000.ckpt", "epoch-00011-step-0000000.ckpt"]


def test_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    for epoch in (1, 2):
        save(tmp_path, model, epoch=epoch)
    before, newest = files(tmp_path)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit
    newest.write_bytes(content)
    assert load_epoch(tmp_path) == 1
    assert f"{newest} is damaged" in caplog.text
    newest.write_bytes(content[:1000])
    assert load_epoch(tmp_path) == 1
    before.write_bytes(b"")
    assert load_epoch(tmp_path) is None


def test_checkpoint_that_executes_code_is_not_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (mark,))

    torch.save({"progress": Bomb()}, tmp_path / "epoch-00001-step-0000000.ckpt")
    assert load_epoch(tmp_path) is None
    assert not mark.exists()


def test_checkpoint_of_another_job_is_refused_by_name(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path, model, epoch=1)
    with pytest.raises(JobError, match=r"of a job with lr=0\.01, not 0\.02"):
        load_epoch(tmp_path, config=CONFIG.replace(lr=0.02))
    with pytest.raises(JobError, match="of a job with epochs=10, not 20"):
        load_epoch(tmp_path, config=CONFIG.replace(epochs=20))
    with pytest.raises(JobError, match="of a job with other images"):
        load_epoch(tmp_path, data="other")


def save_as(folder: Path, model: nn.Module, *, without: str = "", **further: str) -> None:
    """A checkpoint at all defaults as another version writes it: without a setting that it did not have yet, or with
    further ones that this version does not know."""
    theirs = {name: value for name, value in identity(DEFAULT, "d").items() if name != without} | further
    Checkpoints(folder, theirs).save(Progress(epoch=3), model, make_optimizer(model, DEFAULT), {})


@pytest.mark.parametrize("name", [known.name for known in parameters() if known.changes_result])
def test_checkpoint_from_before_a_setting_was_added_goes_on_at_its_default_only(
    tmp_path: Path, model: nn.Module, name: str
) -> None:
    save_as(tmp_path, model, without=name)
    assert load_epoch(tmp_path, config=DEFAULT) == 3
    known = parameter(name)
    with pytest.raises(JobError, match=f"of a job with {name}={known.default}, not "):
        load_epoch(tmp_path, config=DEFAULT.replace(**{name: other_value(known)}))


def test_refusal_of_a_setting_that_was_added_is_a_sentence(tmp_path: Path, model: nn.Module) -> None:
    save_as(tmp_path, model, without="label_smoothing")
    with pytest.raises(JobError) as caught:
        load_epoch(tmp_path, config=DEFAULT.replace(label_smoothing=0.2))
    assert caught.value.message == f"the checkpoints in {tmp_path} are of a job with label_smoothing=0.1, not 0.2"
    assert "a checkpoint folder of its own" in caught.value.hint


def test_checkpoint_without_the_images_fingerprint_is_refused(tmp_path: Path, model: nn.Module) -> None:
    save_as(tmp_path, model, without="data")
    with pytest.raises(JobError, match="of a job with other images"):
        load_epoch(tmp_path, config=DEFAULT)


def test_checkpoint_with_a_setting_that_was_dropped_is_refused(tmp_path: Path, model: nn.Module) -> None:
    save_as(tmp_path, model, nesterov="False")
    with pytest.raises(JobError, match="of a job with nesterov=False, which this version does not know"):
        load_epoch(tmp_path, config=DEFAULT)


def test_checkpoint_with_a_setting_that_was_dropped_goes_on_if_it_was_at_its_default(
    tmp_path: Path, model: nn.Module
) -> None:
    save_as(tmp_path, model, nesterov="True")
    (path,) = files(tmp_path)
    content = torch.load(path, weights_only=True)
    assert "momentum" in content["at_default"]
    torch.save(content | {"at_default": [*content["at_default"], "nesterov"]}, path)
    assert load_epoch(tmp_path, config=DEFAULT) == 3


def test_setting_that_no_longer_changes_the_result_is_passed_over(tmp_path: Path, model: nn.Module) -> None:
    save_as(tmp_path, model, workers="5")
    assert load_epoch(tmp_path, config=DEFAULT) == 3


def test_settings_that_change_no_weight_may_change(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path, model, epoch=4)
    harmless = {known.name: other_value(known) for known in parameters() if not known.changes_result}
    assert {"workers", "log_interval", "debug", "golden_samples", "max_bad_images"} <= set(harmless)
    assert load_epoch(tmp_path, config=CONFIG.replace(**harmless)) == 4


def test_finished_job_keeps_only_its_result(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path, model, epoch=1)
    progress = Progress(epoch=2, step=7, finished=True)
    checkpoints = Checkpoints(tmp_path, identity(CONFIG, "d"))
    with checkpoints.settled():
        checkpoints.finish(progress, {"w": torch.ones(1)})
        progress.start_epoch(3)  # what is written is what was
    (only,) = files(tmp_path)
    checkpoint = checkpoints.load()
    assert only.stat().st_size < 10_000
    assert checkpoint is not None
    assert checkpoint.progress == Progress(epoch=2, step=7, finished=True)


def test_a_result_that_cannot_be_written_is_an_error_at_the_end_and_beside_another_one_a_warning(
    tmp_path: Path, model: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, model, epoch=1)
    checkpoints = Checkpoints(tmp_path, {})

    def end(error: Exception | None) -> None:
        with no_file_larger_than(9999), checkpoints.settled():
            checkpoints.finish(Progress(epoch=2), {"w": torch.ones(9999)})
            if error is not None:
                raise error

    with pytest.raises(PlatformError, match="cannot write"):
        end(None)
    assert "not written" not in caplog.text
    with pytest.raises(JobStopped):
        end(JobStopped("stopped"))
    assert "a checkpoint was not written: cannot write" in caplog.text
    assert load_epoch(tmp_path) == 1


def test_full_disk_names_the_file_and_keeps_the_checkpoint_there_is(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path, model, epoch=1)
    with (
        pytest.raises(PlatformError, match=r"cannot write .*epoch-00002-step-0000000\.ckpt"),
        no_file_larger_than(9999),
    ):
        save(tmp_path, model, epoch=2)
    assert len(files(tmp_path)) == 1
    assert load_epoch(tmp_path) == 1


def test_short_epochs_do_not_all_write_a_checkpoint(tmp_path: Path, model: nn.Module) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    assert checkpoints.due
    checkpoints.save(Progress(), model, make_optimizer(model, CONFIG), {})
    assert not checkpoints.due


def test_a_checkpoint_from_before_contents_were_read_goes_on(tmp_path: Path, model: nn.Module) -> None:
    save(tmp_path, model, epoch=2, data="by name")
    path = files(tmp_path)[0]
    content = torch.load(path, weights_only=True)
    del content["contents"]
    torch.save(content, path)
    checkpoint = Checkpoints(tmp_path, identity(CONFIG, "by content"), data_before=lambda: "by name").load()
    assert checkpoint is not None
    assert (checkpoint.progress.epoch, checkpoint.contents) == (2, {})
    with pytest.raises(JobError, match="other images"):
        Checkpoints(tmp_path, identity(CONFIG, "by content"), data_before=lambda: "another").load()


def test_the_order_of_the_samples_comes_back(tmp_path: Path, model: nn.Module) -> None:
    checkpoints = Checkpoints(tmp_path, {}, contents={"train": ["a", "b"]})
    checkpoints.save(Progress(), model, make_optimizer(model, CONFIG), {})
    found = Checkpoints(tmp_path, {}).load()
    assert found is not None
    assert found.contents == {"train": ["a", "b"]}
