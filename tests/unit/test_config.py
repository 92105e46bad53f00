import itertools

import pytest
from tests.other_values import other_value

from image_classifier.contract.config import TrainConfig, parameters, parse_value
from image_classifier.contract.errors import ConfigError


def argv_of(hyperparameters: dict[str, str]) -> list[str]:
    return [word for name, value in hyperparameters.items() for word in (f"--{name}", value)]


# No value is its default; among them are a path with a space, a float that is no round decimal, and a large number.
NOT_DEFAULT = TrainConfig(
    **{known.name: other_value(known) for known in parameters()}
    | {"weights": "weights/my model.pth", "lr": 0.1 + 0.2 - 0.27, "seed": 2**32 - 1, "valid_fraction": 0.125}
)


def test_round_trip_covers_every_field() -> None:
    default = TrainConfig()
    unchanged = [p.name for p in parameters() if getattr(NOT_DEFAULT, p.name) == getattr(default, p.name)]
    assert unchanged == []


@pytest.mark.parametrize("config", [TrainConfig(), NOT_DEFAULT])
def test_config_to_strings_to_arguments_to_config_loses_nothing(config: TrainConfig) -> None:
    strings = config.to_hyperparameters()
    assert all(isinstance(value, str) for value in strings.values())
    assert TrainConfig.from_hyperparameters(strings) == config
    assert TrainConfig.from_argv(argv_of(strings)) == config


def test_values_quoted_by_a_tuner_are_read() -> None:
    config = TrainConfig.from_argv(["--batch_size", '"64"', "--lr", '"0.05"', "--optimizer", '"adamw"'])
    assert (config.batch_size, config.lr, config.optimizer) == (64, 0.05, "adamw")


def test_names_the_platform_adds_are_passed_over() -> None:
    config = TrainConfig.from_argv(
        ["--_tuning_objective_metric", "validation:accuracy", "--sagemaker_region", "eu-west-1", "--epochs", "2"]
    )
    assert config == TrainConfig(epochs=2)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rate", "0.1"], "unknown hyperparameter 'learning_rate'"),
        (["--batchsize", "8"], "unknown hyperparameter 'batchsize'"),
        (["--epochs", "2.5"], "epochs must be a whole number, not '2.5'"),
        (["--lr", "fast"], "lr must be a number, not 'fast'"),
        (["--lr", "nan"], "lr must lie in 1e-08 .. 10, not nan"),
        (["--debug", "yes"], "debug must be true or false, not 'yes'"),
        (["--optimizer", "lion"], "optimizer must be one of sgd, adamw, not 'lion'"),
        (["--epochs", "0"], "epochs must lie in 1 .. 10000, not 0"),
        (["--warmup_epochs", "11"], "warmup_epochs (11) is longer than the 10 epochs of the job"),
        (["--weights", ""], "weights must not be empty"),
        (["--lr"], "argument --lr: expected one argument"),
    ],
)
def test_wrong_hyperparameters_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_argv(argv)
    assert error.value.message == message


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig.from_argv(["--batchsize", "8"])
    assert error.value.hint == "did you mean batch_size?"


def test_every_default_lies_in_its_own_range() -> None:
    for param in parameters():
        assert parse_value(param.name, str(param.default)) == param.default


def test_every_hyperparameter_says_what_it_is() -> None:
    assert [p.name for p in parameters() if not p.help] == []


def test_settings_of_one_kind_stand_together() -> None:
    sections = [section for section, _ in itertools.groupby(parameters(), key=lambda known: known.section)]
    assert "" not in sections
    assert len(sections) == len(set(sections)) > 1


def test_replace_refuses_unknown_names_and_bad_values() -> None:
    with pytest.raises(ConfigError, match="unknown hyperparameter"):
        TrainConfig().replace(learning_rate=0.1)
    with pytest.raises(ConfigError, match="batch_size must be a whole number"):
        TrainConfig().replace(batch_size=3.5)


def test_job_fits_the_platforms_limits() -> None:
    strings = TrainConfig().to_hyperparameters()
    assert len(strings) <= 100  # hyperparameters a job may have
    assert all(len(name) <= 256 and len(value) <= 2500 for name, value in strings.items())
