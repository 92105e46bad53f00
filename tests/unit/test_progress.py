"""How far a job is, from what it logs."""

from __future__ import annotations

from image_classifier.contract.metrics import metric_line
from image_classifier.launch.progress import JobProgress, duration

STEP = "16:28:20 epoch={}/4 step={}/10 loss=1.2345 lr=0.01 images/s=31.5 data_wait=12%"


def test_steps_and_epochs_are_told_apart() -> None:
    progress = JobProgress(epochs=4)
    assert progress.feed("16:28:20 device: cpu", 0.0) == "other"
    assert progress.seconds_left(0.0) is None
    assert progress.feed(STEP.format(1, 5), 1.0) == "step"
    assert (progress.done, progress.loss, progress.images_per_second) == (0.5, 1.2345, 31.5)
    line = metric_line(1, {"train:loss": 0.9, "validation:loss": 1.1, "validation:accuracy": 0.75})
    assert progress.feed(f"16:28:21 {line}", 2.0) == "epoch"
    assert progress.done == 1.0
    assert progress.describe().startswith("epoch 1/4  loss 0.900  validation loss 1.100  validation accuracy 0.750")


def test_time_left_is_extrapolated_from_the_pace() -> None:
    progress = JobProgress(epochs=4)
    progress.feed(STEP.format(1, 5), 10.0)
    progress.feed(STEP.format(2, 5), 20.0)
    assert progress.seconds_left(20.0) == 25.0  # 1 epoch in 10 s, 2.5 to go


def test_epochs_of_larger_crops_count_for_more() -> None:
    progress = JobProgress(epochs=4, work=(0.25, 0.25, 1.0, 1.0))
    progress.feed(STEP.format(1, 0), 10.0)
    progress.feed(STEP.format(2, 0), 20.0)
    assert progress.seconds_left(20.0) == 90.0  # a quarter in 10 s, 2.25 to go
    progress.feed(STEP.format(3, 5), 40.0)
    assert (progress.done, progress.worked) == (2.5, 1.0)
    assert progress.seconds_left(40.0) == 45.0


def test_a_loss_without_bounds_is_no_row_of_digits() -> None:
    progress = JobProgress(epochs=4)
    progress.feed(metric_line(1, {"train:loss": 1796.4, "validation:loss": 3.398e35}), 1.0)
    assert progress.describe() == "epoch 1/4  loss 1796.400  validation loss 3.4e+35"


def test_test_metrics_end_no_epoch() -> None:
    progress = JobProgress(epochs=4, epoch=4)
    assert progress.feed(metric_line(2, {"test:accuracy": 0.5}), 1.0) == "other"
    assert (progress.epoch, progress.metrics["test:accuracy"]) == (4, 0.5)


def test_durations_read_well() -> None:
    assert [duration(s) for s in (0.4, 59.4, 60, 3725)] == ["0 s", "59 s", "1 min 0 s", "1 h 2 min"]
