import tomllib

import pytest

from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.search import (
    DEFAULT_SEARCH_SPACE,
    Categorical,
    Continuous,
    Integer,
    parse_search_space,
    with_values,
)


def parse(toml: str) -> object:
    return parse_search_space(tomllib.loads(toml))


def test_the_default_space_written_as_toml_is_the_default_space() -> None:
    toml = "lr = { low = 0.001, high = 0.1, log = true }\nbatch_size = [16, 32, 64, 128]"
    assert parse(toml) == DEFAULT_SEARCH_SPACE


def test_every_kind_of_range_is_read() -> None:
    assert parse('patience = { low = 1, high = 5 }\nweight_decay = { low = 0, high = 1 }\noptimizer = ["adamw"]') == {
        "patience": Integer(low=1, high=5),
        "weight_decay": Continuous(low=0.0, high=1.0),
        "optimizer": Categorical(values=("adamw",)),
    }


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("", "the search space is empty"),
        ("lrr = [0.1]", "unknown hyperparameter 'lrr'"),
        ("lr = 0.1", "lr: 0.1 is not a range"),
        ("lr = { low = 0.1 }", "is not a range"),
        ("lr = { low = 0.1, high = 0.01 }", r"lr: low \(0.1\) must be below high \(0.01\)"),
        ("lr = { low = 0.001, high = 20 }", "lr must lie in"),
        ("weight_decay = { low = 0, high = 1, log = true }", "a log range needs low above 0"),
        ("lr = { low = 0.001, high = 0.1, log = 'yes' }", "log is true or false"),
        ("optimizer = { low = 0, high = 1 }", "optimizer is not a number"),
        ('optimizer = ["lion"]', "optimizer must be one of"),
        ("batch_size = []", "a list has 1 to 30 values"),
        (f"batch_size = {list(range(1, 32))}", "this one has 31"),
    ],
)
def test_wrong_spaces_are_named(toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(toml)


def test_sampled_values_are_what_the_table_will_show() -> None:
    config = with_values(TrainConfig(), {"lr": 0.012345678912345, "batch_size": 64})
    assert (config.lr, config.batch_size) == (0.0123457, 64)
