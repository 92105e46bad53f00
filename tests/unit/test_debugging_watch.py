"""The door for any training: a few lines around a loop, and nothing of torch is changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.cli.main import main
from image_classifier.debugging.door import Watch, watch
from image_classifier.debugging.schema import Verdict, read_job, read_statistics, read_steps

DOCUMENT = Path(__file__).parents[2] / "docs" / "debugger.md"
CLASSES = 3


def points(count: int = 240) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 8) around three centres, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    centres = 2 * torch.randn(CLASSES, 8, generator=generator)
    return centres[labels] + torch.randn(count, 8, generator=generator), labels


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, CLASSES))


def train(
    seen: Watch, model: nn.Module, optimizer: torch.optim.Optimizer, *, steps: int = 60, zero: bool = True
) -> None:
    inputs, labels = points()
    for step in range(steps):
        batch = slice(24 * (step % 10), 24 * (step % 10) + 24)
        logits = model(inputs[batch])
        loss = F.cross_entropy(logits, labels[batch])
        if zero:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen.step(loss, logits, labels[batch])


def causes(seen: Watch) -> list[str]:
    return [each.rule for each in seen.findings]


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "watch(" in code)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/debugger.md", "exec"), names)
    assert names["seen"].findings == []
    assert (tmp_path / "seen" / "rules.json").is_file()


def test_a_healthy_training_has_no_finding_and_is_left_as_it_was(tmp_path: Path) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, classes=CLASSES, folder=tmp_path, epochs=6, steps_per_epoch=10) as seen:
        train(seen, model, optimizer)
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert causes(seen) == []
    assert not [each for each in seen.results if each.verdict is Verdict.ERROR]
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert not any(each._backward_hooks for each in model.parameters())


def test_watching_changes_no_weight() -> None:
    weights = []
    for watched in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen = watch(model, optimizer, classes=CLASSES)
        if watched:
            with seen:
                train(seen, model, optimizer)
        else:
            train(seen, model, optimizer)  # records, but stands on nothing
        weights.append([each.detach().clone() for each in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_what_it_leaves_is_judged_again_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watch(model, optimizer, classes=CLASSES, folder=tmp_path, epochs=6, steps_per_epoch=10) as seen:
        train(seen, model, optimizer)
    assert causes(seen) == ["LearningRate"]
    assert len(read_steps(tmp_path)) == 60
    assert {each.step for each in read_statistics(tmp_path) if each.weights} == {0, 1, 2, 5, 10, 20, 50}
    assert (job := read_job(tmp_path)) is not None
    assert job.classes == ["0", "1", "2"]
    assert main(["rules", str(tmp_path), "--exit-code"]) == 3
    rows = capsys.readouterr().out.splitlines()
    assert rows[1].startswith("LearningRate\twarning\tthe learning rate is 0 (its symptoms: ")
    assert "WeightUpdateRatio" in rows[1]


def test_a_network_that_is_asked_for_its_shapes_first_is_watched() -> None:
    """As Keras does, with tensors that have no numbers."""

    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if inputs.is_meta:
                return torch.empty((len(inputs), CLASSES), device="meta")
            found: torch.Tensor = self.inner(inputs)
            return found

    model = Shaped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, classes=CLASSES) as seen:
        model(torch.empty((4, 8), device="meta"))
        train(seen, model, optimizer)
    assert len(seen.run.step("train", "loss")) == 60
    assert {"activations", "inputs"} <= set(seen.run.kinds())


def test_gradients_that_are_never_zeroed_are_found_and_accumulation_is_not() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, classes=CLASSES) as seen:
        train(seen, model, optimizer, zero=False)
    assert "StaleGradient" in causes(seen)
    model, (inputs, labels) = network(), points()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with watch(model, optimizer, classes=CLASSES) as seen:
        for _ in range(60):
            optimizer.zero_grad()
            for part in (slice(0, 100), slice(100, 200)):  # two backward passes for a step
                logits = model(inputs[part])
                loss = F.cross_entropy(logits, labels[part])
                (loss / 2).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            seen.step(loss, logits, labels[part])
    assert "StaleGradient" not in causes(seen)
    assert next(each for each in seen.results if each.rule == "StaleGradient").verdict is Verdict.NO_ISSUES


def test_an_optimiser_that_cannot_be_asked_is_none() -> None:
    for rate, found in ((0.1, False), (0.0, True)):
        model, (inputs, labels) = network(), points()
        with watch(model, classes=CLASSES) as seen:
            for _ in range(60):
                logits = model(inputs)
                loss = F.cross_entropy(logits, labels)
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                with torch.no_grad():
                    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                        parameter.sub_(rate * gradient)
                seen.step(loss, logits, labels)
        assert ("UnchangedTensor" in causes(seen)) == found
        assert seen.run.tensor_names("gradients") == ()  # nobody kept them


def test_any_loss_and_any_output_will_do() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs = torch.randn(64, 6)
    with watch(model, optimizer) as seen:
        for _ in range(80):
            loss = (model(inputs) - inputs).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.step(loss)
        seen.validation(loss)
    assert causes(seen) == []
    assert not [each for each in seen.results if each.verdict is Verdict.ERROR]


def test_a_rule_of_stop_on_gives_a_reason_to_stop() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9)
    with watch(model, optimizer, classes=CLASSES, stop_on="ExplodingTensor") as seen:
        train(seen, model, optimizer, steps=120)
    assert seen.stop_reason is not None
    assert seen.stop_reason.rule == "ExplodingTensor"


def test_one_cause_gives_one_finding() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e9)
    with watch(model, optimizer, classes=CLASSES, epochs=6, steps_per_epoch=10) as seen:
        train(seen, model, optimizer)
    assert "nan to nan" not in " ".join(each.summary for each in seen.results)
    assert len(causes(seen)) == 1


@pytest.mark.parametrize("labels", [torch.full((24,), 7), torch.full((24,), -3)])
def test_labels_outside_of_the_classes_are_found(labels: torch.Tensor) -> None:
    model, (inputs, _) = network(), points()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, classes=CLASSES) as seen:
        for _ in range(20):
            logits = model(inputs[:24])
            loss = logits.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.step(loss, logits, labels)
    assert causes(seen) == ["LabelsOutside"]


def test_a_watching_that_fails_ends_no_training(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, classes=CLASSES) as seen:
        seen._recorder._before_forward = lambda _: 1 / 0  # type: ignore[assignment, return-value]
        train(seen, model, optimizer)
    assert "switched off" in caplog.text
