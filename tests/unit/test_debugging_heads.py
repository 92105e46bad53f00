"""Network, loss and labels that do not fit each other, seen through the door; and programs like them that do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # everybody's name for it
from torch import nn

from image_classifier.debugging.door import Watch, watch
from image_classifier.debugging.pairs import class_labels, predicted_classes
from image_classifier.debugging.probes import bend, untrained_leaves
from image_classifier.debugging.schema import Verdict

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
logistic = F.binary_cross_entropy_with_logits


def rings(count: int = 480) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rings around each other: (count, 2), labels of 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    angle = 6.283 * torch.rand(count, generator=generator)
    radius = torch.where(labels == 0, 1.0, 0.4)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), labels


def perceptron(outputs: int, last: nn.Module | None = None, *, bends: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 32), nn.ReLU() if bends else nn.Identity(), nn.Linear(32, outputs)]
    return nn.Sequential(*layers, *([last] if last else []))


def train(
    model: nn.Module,
    loss: Loss,
    targets: torch.Tensor,
    *,
    classes: int = 0,
    evaluates: bool = True,
    trains: bool = True,
) -> Watch:
    """Ten epochs of ten steps."""
    inputs, _ = rings()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    torch.manual_seed(1)
    with watch(model, optimizer, classes=classes, epochs=10, steps_per_epoch=10) as seen:
        for _ in range(10):
            model.train(trains)
            for batch in (80 + torch.randperm(400)).split(40):
                outputs = model(inputs[batch])
                value = loss(outputs, targets[batch])
                optimizer.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                seen.step(value, outputs, targets[batch])
            model.train(not evaluates)
            with torch.no_grad():
                outputs = model(inputs[:80])
                seen.validation(loss(outputs, targets[:80]), outputs, targets[:80])
    assert not [each for each in seen.results if each.verdict is Verdict.ERROR]
    return seen


def said(seen: Watch) -> str:
    return "; ".join(f"{each.rule}: {each.summary}" for each in seen.findings)


class Negated(nn.Module):
    """Minus a ReLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -torch.relu(x)


def by_place(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of (n, places, classes) logits."""
    return F.cross_entropy(outputs.flatten(0, 1), labels.flatten())


def divergence(outputs: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    return F.kl_div(outputs.log_softmax(1), shares, reduction="batchmean")


COLUMN = rings()[1].float()[:, None]
SEVERAL = torch.cat([COLUMN, 1 - COLUMN, (rings()[0][:, :1] > 0).float()], 1)  # two of three labels, or one
SHARES = 0.05 + 0.9 * F.one_hot(rings()[1]).float()
PLACES = torch.stack([rings()[1], 1 - rings()[1], torch.full_like(rings()[1], -100)], 1)
NUMBERS = 3 * rings()[0][:, :1] + rings()[0][:, 1:] ** 2


@pytest.mark.parametrize(
    ("model", "loss", "targets", "classes"),
    [
        (lambda: perceptron(1), logistic, COLUMN, 2),
        (lambda: perceptron(1, nn.Sigmoid()), F.binary_cross_entropy, COLUMN, 2),
        (lambda: perceptron(2), logistic, F.one_hot(rings()[1]).float(), 2),
        (lambda: perceptron(2, nn.Softmax(1)), F.mse_loss, F.one_hot(rings()[1]).float(), 2),
        (lambda: perceptron(1), lambda o, y: (1 - o * y).clamp(min=0).mean(), 2 * COLUMN - 1, 2),
        (lambda: perceptron(2, nn.LogSoftmax(1)), F.nll_loss, rings()[1], 2),
        (lambda: perceptron(1), F.mse_loss, NUMBERS, 0),
        (lambda: perceptron(1), F.l1_loss, NUMBERS, 0),
        (lambda: perceptron(3, nn.Sigmoid()), F.binary_cross_entropy, SEVERAL, 3),
        (lambda: perceptron(2), F.cross_entropy, SHARES, 2),
        (lambda: perceptron(2), divergence, SHARES, 0),
        (lambda: perceptron(6, nn.Unflatten(1, (2, 3))), F.cross_entropy, PLACES, 0),
        (lambda: perceptron(6, nn.Unflatten(1, (3, 2))), by_place, PLACES, 0),
        (lambda: perceptron(1, nn.LogSigmoid()), F.mse_loss, -NUMBERS.abs(), 0),
    ],
)
def test_heads_that_fit_are_not_accused(
    model: Callable[[], nn.Module], loss: Loss, targets: torch.Tensor, classes: int
) -> None:
    assert said(train(model(), loss, targets, classes=classes)) == ""


@pytest.mark.parametrize(
    ("model", "loss", "targets", "classes", "words"),
    [
        (lambda: perceptron(1, nn.Sigmoid()), logistic, COLUMN, 2, "WrongHead: a sigmoid stands before a logistic"),
        (lambda: perceptron(1, nn.ReLU()), logistic, COLUMN, 2, "WrongHead: a ReLU stands before a logistic"),
        (lambda: perceptron(2), F.nll_loss, rings()[1], 2, "WrongHead: the loss takes the logarithms"),
        (lambda: perceptron(2, nn.LogSoftmax(0)), F.nll_loss, rings()[1], 2, "over the batch, not over the classes"),
        (lambda: perceptron(1, nn.Softmax(1)), F.mse_loss, COLUMN, 0, "WrongHead: the only output is 1"),
        (lambda: perceptron(1), F.mse_loss, COLUMN, 5, "WrongHead: one output cannot tell 5 classes apart"),
        (lambda: perceptron(1, nn.ReLU()), F.mse_loss, NUMBERS, 0, "a ReLU stands at the end"),
        (lambda: perceptron(1, nn.Sigmoid()), F.mse_loss, NUMBERS + 9, 0, "a sigmoid stands at the end"),
        (lambda: perceptron(1), F.mse_loss, NUMBERS[:, 0], 0, "LossForm: the loss compares every output with every"),
        (
            lambda: perceptron(1),
            F.smooth_l1_loss,
            NUMBERS[:, 0],
            0,
            "LossForm: the loss compares every output with every",
        ),
        (lambda: perceptron(1), lambda o, y: -F.mse_loss(o, y), NUMBERS, 0, "LossForm: the loss has the other sign"),
        (lambda: perceptron(1), logistic, 2 * COLUMN - 1, 2, "LabelsOutside: labels go from -1 to 1"),
        (lambda: perceptron(3, nn.Softmax(1)), F.binary_cross_entropy, SEVERAL, 3, "labels that do not exclude each"),
        (lambda: perceptron(2, nn.Softmax(1)), F.cross_entropy, SHARES, 2, "a softmax stands before a cross entropy"),
        (lambda: perceptron(2), lambda o, y: -divergence(o, y), SHARES, 0, "LossForm: the loss has the other sign"),
        (
            lambda: perceptron(6, nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Softmax(1))),
            F.cross_entropy,
            PLACES,
            0,
            "a softmax stands before a cross entropy",
        ),
        (
            lambda: perceptron(6, nn.Sequential(nn.Unflatten(1, (3, 2)), nn.Softmax(2))),
            by_place,
            PLACES,
            0,
            "a softmax stands before a cross entropy",
        ),
        (lambda: perceptron(2, Negated()), F.cross_entropy, rings()[1], 2, "minus a ReLU stands before a cross"),
        (lambda: perceptron(1, Negated()), F.mse_loss, NUMBERS, 0, "minus a ReLU stands at the end"),
        (lambda: perceptron(3), F.cross_entropy, rings()[1] + 1, 2, "3 outputs and 2 classes"),
        (lambda: perceptron(1, bends=False), logistic, COLUMN, 2, "NoActivation: there is no activation"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_heads_that_do_not_fit_are_named(
    model: Callable[[], nn.Module], loss: Loss, targets: torch.Tensor, classes: int, words: str
) -> None:
    assert words in said(train(model(), loss, targets, classes=classes))


def test_a_network_in_the_wrong_mode_is_named() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2))

    labels = rings()[1]
    assert said(train(dropping(), F.cross_entropy, labels, classes=2)) == ""
    assert "10 validations ran in training mode" in said(
        train(dropping(), F.cross_entropy, labels, classes=2, evaluates=False)
    )
    assert "the network trains in evaluation mode: 1 dropouts" in said(
        train(dropping(), F.cross_entropy, labels, classes=2, trains=False)
    )


def test_branches_that_begin_at_zero_are_no_missing_activations() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(16, 16), nn.Linear(16, 16)
            nn.init.zeros_(self.outer.weight)
            nn.init.zeros_(self.outer.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            added: torch.Tensor = self.outer(torch.relu(self.inner(x)))
            return x + added

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), Branch(), Branch(), nn.Linear(16, 2))
    assert said(train(model, F.cross_entropy, rings()[1], classes=2)) == ""


def test_whole_numbers_to_be_learned_are_no_classes() -> None:
    def squares(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(outputs[:, 0], labels.float())

    counts = (3 * (1 + rings()[0][:, 0])).round().long()
    assert int(counts.max()) > 1
    assert said(train(perceptron(1), squares, counts)) == ""


def test_a_share_to_keep_given_as_one_to_drop_is_named() -> None:
    def dropping(share: float) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(share), nn.Linear(64, 2))

    labels = rings()[1]
    assert "HeavyDropout: a dropout drops 95 %" in said(train(dropping(0.95), F.cross_entropy, labels, classes=2))
    assert "HeavyDropout" not in said(train(dropping(0.5), F.cross_entropy, labels, classes=2))


def test_images_that_are_all_drawn_to_one_place_are_found() -> None:
    torch.manual_seed(0)
    model, inputs = perceptron(4), rings()[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with watch(model, optimizer) as seen:
        for _ in range(120):
            places = model(inputs)
            value = (places - places.roll(2, 0)).square().mean()  # nothing keeps them apart
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen.step(value, places)
    assert "ConstantOutput: all images get the same answer" in said(seen)


def test_an_optimiser_of_many_updates_a_step_may_go_as_many_times_as_far() -> None:
    torch.manual_seed(0)
    model, (inputs, labels) = perceptron(2), rings()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=8)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(model(inputs), labels) + 1e-3 * sum(p.square().sum() for p in model.parameters())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with watch(model, optimizer, classes=2) as seen:
        for _ in range(40):
            value = optimizer.step(closure)
            outputs = model(inputs)
            seen.step(value.detach(), outputs.detach(), labels)
    ratios = [series.values.max() for _, series in seen.run.tensors("weights", "update_ratio")]
    assert max(ratios) > 0.2
    assert "WeightUpdateRatio" not in said(seen)


def test_the_first_step_after_a_validation_is_recorded() -> None:
    seen = train(perceptron(2), F.cross_entropy, rings()[1], classes=2)  # ten steps an epoch
    recorded = next(series for _, series in seen.run.tensors("weights", "l2"))
    assert recorded.steps.tolist() == [0, 1, 2, 5, 10, 20, 50]
    looked = next(series for _, series in seen.run.tensors("activations", "zero_share"))
    assert 50 in looked.steps


def test_layers_that_no_module_holds_are_found() -> None:
    hidden = nn.Linear(2, 8)
    outputs = nn.Linear(8, 2)(torch.relu(hidden(rings()[0][:4])))
    assert untrained_leaves(outputs, hidden.parameters()) == 1
    assert untrained_leaves(outputs, []) == 2
    outputs.sum().backward()  # type: ignore[no-untyped-call]
    assert untrained_leaves(outputs, hidden.parameters()) == 1


def test_a_look_at_a_network_leaves_it_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model[2].eval()
    state = torch.get_rng_state()
    assert (found := bend(model, rings()[0])) is not None
    assert found < 1e-4
    assert [each.training for each in model.modules()] == [True, True, True, False, True]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_labels_of_classes_are_read_in_every_form() -> None:
    wanted = [0, 1, 1]
    for labels in (
        [0, 1, 1],
        [0.0, 1.0, 1.0],
        [[0.0], [1.0], [1.0]],
        [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],
        [-1.0, 1.0, 1.0],
    ):
        found = class_labels(torch.tensor(labels), 2)
        assert found is not None
        assert found.tolist() == wanted
    several = class_labels(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 2)
    assert several is not None
    assert several.tolist() == [-1, -1]  # two labels at once are no class
    assert class_labels(torch.tensor([[0.3], [0.8]]), 0) is None
    assert predicted_classes(torch.tensor([[0.4], [0.6]]), 2).tolist() == [0, 1]
    assert predicted_classes(torch.tensor([[-0.4], [0.3], [2.0]]), 2).tolist() == [0, 1, 1]


@pytest.mark.parametrize(("images", "verdict"), [(4, Verdict.INSUFFICIENT_DATA), (12, Verdict.ISSUES)])
def test_a_sigmoid_is_known_by_many_outputs_only_because_a_few_logits_may_look_like_its(
    images: int, verdict: Verdict
) -> None:
    model = perceptron(2, nn.Sigmoid())
    inputs, labels = (part[:images] for part in rings())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watch(model, optimizer, classes=2, epochs=1, steps_per_epoch=3, interval=1) as seen:
        for _ in range(3):
            outputs = model(inputs)
            value = F.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen.step(value, outputs, labels)
    assert {each.rule: each.verdict for each in seen.results}["WrongHead"] is verdict
