"""The debug hook: what it records, and that it never harms a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from image_classifier.contract.paths import MlPaths
from image_classifier.training.hook import DebugHook, NoHook, make_hook

pytestmark = pytest.mark.filterwarnings("ignore")  # smdebug and what it imports are of 2023


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMDEBUG_TRAINING_END_DELAY_REFRESH", "0")  # seconds its reader waits for late files


@pytest.fixture
def paths(tmp_path: Path) -> MlPaths:
    return MlPaths(base=tmp_path)


def record(hook: DebugHook | NoHook, model: nn.Module) -> None:
    for switch, steps in ((hook.train, 3), (hook.evaluate, 2)):
        switch()
        for step in range(steps):
            loss = model(torch.full((2, 2), float(step))).mean()
            hook.record(loss)
            loss.backward()


def test_losses_of_both_modes_are_recorded_every_step(paths: MlPaths) -> None:
    from smdebug.pytorch import modes
    from smdebug.trials import create_trial

    hook = make_hook(True, paths, nn.Linear(2, 1))
    hook.train()
    for value in (3.0, 2.0, 1.0):
        hook.record(torch.tensor(value, dtype=torch.bfloat16, requires_grad=True))
    hook.evaluate()
    hook.record(torch.tensor(4.0))
    hook.close()
    trial = create_trial(str(paths.tensors / "attempt-1"))
    (name,) = trial.tensor_names(collection="losses")
    losses = trial.tensor(name)
    assert [float(losses.value(step, mode=modes.TRAIN)) for step in losses.steps(mode=modes.TRAIN)] == [3.0, 2.0, 1.0]
    assert [float(losses.value(step, mode=modes.EVAL)) for step in losses.steps(mode=modes.EVAL)] == [4.0]


def test_every_attempt_has_its_own_folder(paths: MlPaths) -> None:
    for _ in range(2):
        hook = make_hook(True, paths, nn.Linear(2, 1))
        record(hook, nn.Linear(2, 1))  # type: ignore[arg-type]
        hook.close()
    assert sorted(folder.name for folder in paths.tensors.iterdir()) == ["attempt-1", "attempt-2"]


def test_debughookconfig_of_sagemaker_is_honoured(paths: MlPaths) -> None:
    from smdebug.trials import create_trial

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
    model = nn.Linear(2, 1)
    hook = make_hook(True, paths, model)
    record(hook, model)  # type: ignore[arg-type]
    hook.close()
    trial = create_trial(str(paths.tensors))
    assert trial.tensor_names(collection="weights") == ["Linear_weight"]
    assert trial.tensor_names(collection="gradients")
    assert trial.tensor_names(collection="losses")


def test_hook_that_fails_is_switched_off_with_one_warning(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import smdebug.pytorch as smd

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    hook = make_hook(True, paths, nn.Linear(2, 1))
    monkeypatch.setattr(smd.Hook, "record_tensor_value", full_disk)
    record(hook, nn.Linear(2, 1))  # type: ignore[arg-type]
    hook.close()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("image_classifier")]
    assert ours == ["the debug hook failed and is switched off: No space left on device"]


def test_hook_that_cannot_start_is_done_without(paths: MlPaths, caplog: pytest.LogCaptureFixture) -> None:
    paths.config.mkdir(parents=True)
    paths.debug_hook_config.write_text("{")
    assert isinstance(make_hook(True, paths, nn.Linear(2, 1)), NoHook)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("no debug hook: ")


def test_debug_false_records_nothing(paths: MlPaths) -> None:
    hook = make_hook(False, paths, nn.Linear(2, 1))
    record(hook, nn.Linear(2, 1))  # type: ignore[arg-type]
    hook.close()
    assert not paths.tensors.exists()
