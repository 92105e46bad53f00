"""The debug hook: what smdebug can read of it, and that it never harms a training."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.paths import MlPaths
from image_classifier.debugging.observer import Observer
from image_classifier.debugging.rules import RULES
from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import RuleResult
from image_classifier.training.hook import SmdebugSink
from image_classifier.training.observe import Watched, make_hook
from image_classifier.training.setup import Setup
from image_classifier.training.smdebug_files import WORKER, StepFiles
from image_classifier.training.stop import StopFlag

pytestmark = pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023
CONFIG = TrainConfig(profile=False, warmup_epochs=0)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMDEBUG_TRAINING_END_DELAY_REFRESH", "0")  # seconds its reader waits for late files


@pytest.fixture
def paths(tmp_path: Path) -> MlPaths:
    return MlPaths(base=tmp_path)


def hook_for(paths: MlPaths, model: nn.Module, config: TrainConfig = CONFIG, stop: StopFlag | None = None) -> Observer:
    watched = Watched(
        config=config,
        model=model,
        classes=("cat", "dog"),
        images={"train": 12, "valid": 4},
        steps_per_epoch=3,
        begun=time.time(),
        done={"train": 0, "eval": 0, "test": 0},
        setup=Setup(device=torch.device("cpu")),
    )
    return make_hook(watched, paths, StopFlag() if stop is None else stop, on_hang=print)


def train(hook: Observer, model: nn.Module, epochs: int = 1, lr: float = 0.1) -> None:
    """Three steps of training and two of validation an epoch."""
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 1, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for epoch in range(1, epochs + 1):
        hook.begin("train", epoch, (epoch - 1) * 3)
        for _ in range(3):
            hook.before_forward(images)
            logits = model(images)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            hook.after_backward()
            optimizer.step()
            hook.after_update()
            hook.end_step(loss, logits, labels)
        hook.end_epoch()
        hook.begin("eval", epoch, (epoch - 1) * 2)
        for _ in range(2):
            logits = model(images).detach()
            hook.end_step(nn.functional.cross_entropy(logits, labels), logits, labels)
        hook.end_epoch()


def configure_hook(paths: MlPaths) -> None:
    """What SageMaker writes for a job with a debugger configuration."""
    paths.config.mkdir(parents=True)
    paths.debug_hook_config.write_text(
        json.dumps(
            {
                "LocalPath": str(paths.tensors),
                "HookParameters": {"save_interval": "1"},
                "CollectionConfigurations": [{"CollectionName": "weights"}, {"CollectionName": "gradients"}],
            }
        )
    )


def network() -> nn.Module:
    torch.manual_seed(0)  # of some networks this small, all outputs of the few steps lie between 0 and 1
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))


def test_losses_and_reduced_tensors_are_readable_by_smdebug(paths: MlPaths) -> None:
    from smdebug.pytorch import modes
    from smdebug.trials import create_trial

    model = network()
    hook = hook_for(paths, model)
    train(hook, model)
    hook.close()
    trial = create_trial(str(paths.tensors / "attempt-1"))
    assert "CrossEntropyLoss_output_0" in trial.tensor_names(collection="losses")
    losses = trial.tensor("CrossEntropyLoss_output_0")
    assert len(losses.steps(mode=modes.TRAIN)) == 3
    assert len(losses.steps(mode=modes.EVAL)) == 2
    assert "gradient/Sequential_1.weight" in trial.tensor_names(collection="gradients")
    gradient = trial.tensor("gradient/Sequential_1.weight")
    assert gradient.reduction_value(0, "l2", mode=modes.TRAIN) > 0
    assert gradient.reduction_value(0, "mean", mode=modes.TRAIN, abs=True) > 0
    assert "2_output_0" in trial.tensor_names(collection="relu_output")


def test_every_attempt_has_its_own_folder(paths: MlPaths) -> None:
    for _ in range(2):
        model = network()
        hook = hook_for(paths, model)
        train(hook, model)
        hook.close()
    assert sorted(folder.name for folder in paths.tensors.iterdir()) == ["attempt-1", "attempt-2"]


def test_debughookconfig_of_sagemaker_is_honoured(paths: MlPaths) -> None:
    from smdebug.trials import create_trial

    configure_hook(paths)
    model = network()
    hook = hook_for(paths, model)
    train(hook, model)
    hook.close()
    trial = create_trial(str(paths.tensors))
    assert "Sequential_1.weight" in trial.tensor_names(collection="weights")
    assert trial.tensor_names(collection="gradients")
    assert trial.tensor_names(collection="losses")


def test_smdebug_that_fails_is_switched_off_and_the_rules_go_on(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = network()
    hook = hook_for(paths, model)
    monkeypatch.setattr(SmdebugSink, "add", full_disk)
    train(hook, model)
    hook.close()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("image_classifier")]
    assert ours == ["SmdebugSink failed and is switched off: No space left on device"]
    assert [each["rule"] for each in json.loads((paths.output_data / "rules.json").read_text())] == list(RULES)


def finish_in_a_thread(hook: Observer, model: nn.Module) -> None:
    """The rest of a training, so that one that waits for ever fails its test and nothing else."""
    rest = threading.Thread(target=lambda: (train(hook, model), hook.close()), daemon=True)
    rest.start()
    rest.join(timeout=60)
    assert not rest.is_alive()


def test_a_disk_that_fills_up_switches_the_hook_off(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    hook = hook_for(paths, model)
    index, write = paths.tensors / "attempt-1" / "index", StepFiles.close
    left = iter(range(7))  # of the ten steps, so many find room

    def onto_a_disk_that_fills_up(files: StepFiles) -> None:
        if next(left, None) is None and index.is_dir():  # here, since the hook writes in a thread of its own
            index.rename(paths.tensors / "moved")
            index.write_text("")  # from now on nothing can be written below
        write(files)

    monkeypatch.setattr(StepFiles, "close", onto_a_disk_that_fills_up)
    train(hook, model)
    finish_in_a_thread(hook, model)
    assert len(list((paths.tensors / "moved").rglob("*.json"))) == 7
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("image_classifier")]
    assert len(ours) == 1
    assert ours[0].startswith("SmdebugSink failed and is switched off: ")
    assert [each["rule"] for each in json.loads((paths.output_data / "rules.json").read_text())] == list(RULES)


def test_a_disk_that_fills_up_does_not_hang_a_training_that_smdebug_writes_of(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from smdebug.core.tfevent.events_writer import EventsWriter

    configure_hook(paths)
    model = network()
    hook = hook_for(paths, model)
    train(hook, model)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventsWriter, "write_event", full_disk)
    finish_in_a_thread(hook, model)
    assert "the debug hook cannot write, what follows is lost: No space left on device" in caplog.messages


def test_the_files_of_a_step_are_those_that_smdebug_writes(tmp_path: Path) -> None:
    from smdebug.core.modes import ModeKeys
    from smdebug.core.writer import FileWriter

    tensors = {"CrossEntropyLoss_output_0": [0.5], "labels": [float(i) for i in range(133)], "größe/1": [1e-9, -2.0]}
    for step, mode, mode_step in ((0, ModeKeys.TRAIN, 0), (1, ModeKeys.EVAL, 300), (70_000, ModeKeys.PREDICT, 128)):
        theirs = FileWriter(trial_dir=str(tmp_path / "theirs"), worker=WORKER, step=step)
        ours = StepFiles(tmp_path / "ours", step, mode, mode_step)
        for name, values in tensors.items():
            theirs.write_tensor(np.array(values, np.float32), name, mode=mode, mode_step=mode_step)
            ours.add(name, values)
        theirs.close()
        ours.close()
    files = [sorted(path for path in (tmp_path / whose).rglob("*") if path.is_file()) for whose in ("ours", "theirs")]
    names = [
        [path.relative_to(tmp_path / whose) for path in found]
        for whose, found in zip(("ours", "theirs"), files, strict=True)
    ]
    assert len(names[0]) == 6
    assert names[0] == names[1]
    for mine, other in zip(*files, strict=True):
        assert without_wall_times(mine) == without_wall_times(other)


def without_wall_times(path: Path) -> bytes:
    """The bytes of a file of smdebug's, but for the time that stands in each record."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".tfevents":
        place = 0
        while place < len(content):
            assert content[place + 12] == 0x09  # the field wall_time
            content[place + 13 : place + 21] = bytes(8)
            place += 16 + int.from_bytes(content[place : place + 8], "little")
    return bytes(content)


def test_hook_that_cannot_start_is_done_without(paths: MlPaths, caplog: pytest.LogCaptureFixture) -> None:
    paths.config.mkdir(parents=True)
    paths.debug_hook_config.write_text("{")
    model = network()
    hook = hook_for(paths, model)
    train(hook, model)
    hook.close()
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("no debug hook: ")


def test_debug_and_profile_false_observe_nothing(paths: MlPaths) -> None:
    model = network()
    hook = hook_for(paths, model, CONFIG.replace(debug=False))
    train(hook, model)
    hook.close()
    assert not paths.output.exists()


def test_unknown_rule_is_refused_with_the_nearest_name(paths: MlPaths) -> None:
    with pytest.raises(ConfigError, match="there is no rule 'Overfitt'") as caught:
        hook_for(paths, network(), CONFIG.replace(stop_on="Overfitt"))
    assert caught.value.hint == "did you mean Overfit?"


def test_only_rules_named_in_stop_on_stop_a_job(paths: MlPaths) -> None:
    for stop_on, expected in (("none", None), ("UnchangedTensor", "UnchangedTensor")):
        model, stop = network(), StopFlag()
        config = CONFIG.replace(stop_on=stop_on, debug_interval=1)
        hook = hook_for(paths, model, config, stop)
        train(hook, model, epochs=5, lr=0.0)
        hook.close()
        fired = None if stop.rule is None else stop.rule.rule
        assert fired == expected
        assert bool(stop) == (expected is not None)


def test_the_rules_are_asked_when_the_validation_is_counted(paths: MlPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def judge(run: RunData, _rules: Sequence[Rule]) -> list[RuleResult]:
        asked.append([counts.mode for counts in run.classes])
        return []

    monkeypatch.setattr("image_classifier.debugging.live.judge", judge)
    model = network()
    train(hook_for(paths, model), model)
    assert asked == [["train", "eval"]]


def test_a_new_attempt_sees_the_steps_of_the_one_before(paths: MlPaths) -> None:
    model = network()
    first = hook_for(paths, model)
    train(first, model)
    first.close()
    from image_classifier.debugging.saved import read_files

    assert len(read_files(paths.output).step("train", "loss")) == 3
    assert len(read_files(paths.output, before={"train": 2, "eval": 0, "test": 0}).step("train", "loss")) == 2
