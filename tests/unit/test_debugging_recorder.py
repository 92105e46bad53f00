"""The recorder sees what the optimiser does, in every kind of network, and changes nothing."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from image_classifier.debugging.recorder import Recorder
from image_classifier.debugging.rundata import RunData
from image_classifier.debugging.schema import JobFacts

LR = 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def recorder_for(model: nn.Module, *, bf16: bool = False) -> Recorder:
    return Recorder(
        RunData(JobFacts(config={})),
        (),
        model,
        torch.device("cpu"),
        num_classes=2,
        debug_interval=1,
        activation_interval=1,
        bf16=bf16,
    )


def train(
    model: nn.Module, recorder: Recorder | None, *, steps: int = 2, accumulate: int = 1, bf16: bool = False
) -> None:
    generator = torch.Generator().manual_seed(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=LR)
    if recorder is not None:
        recorder.begin("train", 1, 0)
    for _ in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            images = torch.randn(6, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last)
            labels = torch.randint(2, (6,), generator=generator)
            if recorder is not None and part == 0:
                recorder.before_forward(images)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                logits = model(images)
            loss = nn.functional.cross_entropy(logits.float(), labels) / accumulate
            loss.backward()
        if recorder is None:
            optimizer.step()
            continue
        recorder.after_backward()
        optimizer.step()
        recorder.after_update()
        recorder.end_step(loss, logits, labels)
    if recorder is not None:
        recorder.end_epoch()


def frozen() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)  # type: ignore[index]
    return model


def averaged() -> nn.Module:
    model = network()
    AveragedModel(model)  # a deep copy; smdebug's registered modules cannot be copied
    return model


def warnings_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("image_classifier")]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": network,
    "channels_last": lambda: network().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "frozen layer": frozen,
    "EMA": averaged,
    "compiled": lambda: torch.compile(network(), backend="eager"),  # type: ignore[return-value]
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_network_is_recorded(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = MODELS[kind]()
    recorder = recorder_for(model)
    train(model, recorder)
    assert warnings_of_ours(caplog) == []
    run = recorder.run
    assert run is not None
    layers = dict(run.tensors("gradients", "l2"))
    assert list(layers) == (["4.weight"] if kind == "frozen layer" else ["0.weight", "4.weight"])
    assert len(layers["4.weight"]) == 2
    assert [name for name, _ in run.tensors("activations", "input_std")] == ["2_output_0"]


def seen(model: nn.Module) -> dict[tuple[str, str, str], list[float]]:
    """Everything that is recorded of two steps."""
    recorder = recorder_for(model)
    train(model, recorder)
    run = recorder.run
    assert run is not None
    return {
        (kind, name, statistic): series.values.tolist()
        for kind in run.kinds()
        for name, _ in run.tensors(kind, {"inputs": "mean", "activations": "input_std"}.get(kind, "abs_mean"))
        for statistic, series in run.statistics(kind, name).items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        "channels_last",
        "EMA",
        "compiled",
        pytest.param("inductor", marks=pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")),
    ],
)
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_the_kind_of_network_does_not_change_what_is_seen(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = seen(network())
    assert {kind for kind, _, _ in plain} == {"gradients", "weights", "activations", "inputs"}
    others = seen(torch.compile(network()) if kind == "inductor" else MODELS[kind]())  # type: ignore[arg-type]
    assert warnings_of_ours(caplog) == []
    assert others.keys() == plain.keys()
    for key, values in plain.items():
        assert others[key] == pytest.approx(values, rel=1e-3, abs=1e-6), key


def test_bf16_autocast_and_accumulated_gradients_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    recorder = recorder_for(model, bf16=True)
    train(model, recorder, accumulate=3, bf16=True)
    assert warnings_of_ours(caplog) == []
    assert recorder.run is not None
    assert len(recorder.run.step("train", "loss")) == 2
    gradients = dict(recorder.run.tensors("gradients", "l2"))
    assert gradients["4.weight"].values[-1] == pytest.approx(float(model[4].weight.grad.norm()))  # type: ignore[index]
    assert [len(series) for _, series in recorder.run.tensors("activations", "abs_max")] == [2]


def test_a_network_copied_while_it_is_watched_stays_apart() -> None:
    model = network()
    recorder = recorder_for(model)
    train(model, recorder)
    copied = copy.deepcopy(model)
    train(copied, None)
    assert recorder.run is not None
    assert len(recorder.run.step("train", "loss")) == 2


def test_statistics_are_those_of_the_tensors() -> None:
    model = network()
    recorder = recorder_for(model)
    before = model[4].weight.detach().clone()  # type: ignore[index]
    train(model, recorder, steps=1)
    run = recorder.run
    assert run is not None
    gradient = model[4].weight.grad  # type: ignore[index]
    seen = {name: series.values[0] for name, series in run.statistics("gradients", "4.weight").items()}
    assert seen["l2"] == pytest.approx(float(gradient.norm()))
    assert seen["abs_mean"] == pytest.approx(float(gradient.abs().mean()))
    assert seen["abs_max"] == pytest.approx(float(gradient.abs().max()))
    ratio = run.statistics("weights", "4.weight")["update_ratio"].values[0]
    assert ratio == pytest.approx(LR * float(gradient.norm() / before.norm()), rel=1e-4)


def test_watching_changes_neither_weights_nor_running_statistics_nor_random_numbers() -> None:
    watched, alone = network(), network()
    torch.manual_seed(7)
    train(watched, recorder_for(watched))
    state = torch.get_rng_state()
    torch.manual_seed(7)
    train(alone, None)
    assert torch.equal(state, torch.get_rng_state())
    other = alone.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in watched.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


def test_a_dead_unit_and_a_negative_input_are_seen_behind_an_inplace_relu() -> None:
    model = network()
    with torch.no_grad():
        model[1].bias[:3] = -100.0  # type: ignore[index]
    recorder = recorder_for(model)
    train(model, recorder, steps=1)
    assert recorder.run is not None
    seen = recorder.run.statistics("activations", "2_output_0")
    assert seen["dead_share"].values[0] == 0.75
    assert seen["input_std"].values[0] == pytest.approx(1.0, rel=0.1)  # of what entered, not of what is left


def test_steps_go_on_counting_from_where_a_job_resumes() -> None:
    model = network()
    recorder = recorder_for(model)
    recorder.begin("train", 4, 30)
    loss, logits, labels = torch.tensor(1.0), torch.zeros(2, 2), torch.tensor([0, 1])
    recorder.skip_step()
    recorder.end_step(loss, logits, labels)
    recorder.end_epoch()
    assert recorder.run is not None
    assert recorder.run.step("train", "loss").steps.tolist() == [31]
    assert recorder.run.classes[0].labels == (1, 1)
    assert recorder.run.classes[0].hits == (1, 0)
