"""Where a setting's value comes from, and what is said when it is wrong."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from image_classifier.cli import settings
from image_classifier.cli.example_file import example_file
from image_classifier.cli.settings import keys
from image_classifier.cli.targets import TARGET_BY_NAME
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.search import Categorical, Continuous

EXAMPLE = Path(__file__).parents[2] / "deploy.example.toml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No deploy.toml of the checkout is picked up."""
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "deploy.toml") -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_flag_beats_best_beats_environment_beats_file_beats_default() -> None:
    write("[train]\nlr = 0.1\nepochs = 7\nbatch_size = 8\nseed = 1\n")
    best = write(json.dumps({"hyperparameters": {"lr": "0.3", "batch_size": "64"}}), "best.json")
    environ = {"CLASSIFIER_TRAIN_LR": "0.2", "CLASSIFIER_TRAIN_SEED": "2", "CLASSIFIER_TRAIN_BATCH_SIZE": "16"}
    made = settings.load({"train.lr": 0.4}, best=best, environ=environ)
    values = (made.train.lr, made.train.batch_size, made.train.seed, made.train.epochs, made.train.momentum)
    assert values == (0.4, 64, 2, 7, 0.9)
    origins = {key: origin for key, _, origin in made.items()}
    assert origins["train.lr"] == "flag --lr"
    assert origins["train.batch_size"] == "best.json"
    assert origins["train.seed"] == "environment CLASSIFIER_TRAIN_SEED"
    assert origins["train.epochs"] == "deploy.toml"
    assert origins["train.momentum"] == "default"


def test_example_names_every_setting_with_its_default() -> None:
    example = settings.load({}, file=EXAMPLE, environ={})
    assert dict_of(example) == dict_of(settings.load({}, environ={}))
    document = tomllib.loads(EXAMPLE.read_text())
    named = {key for key, value in document.items() if not isinstance(value, dict)}
    for section in settings.SECTIONS:
        named |= {f"{section}.{key}" for key in document[section]}
    assert named == {*settings.keys(), settings.SEARCH_KEY}


def test_example_is_what_the_settings_say_of_themselves() -> None:
    rewrite = "python deploy.py config --example > deploy.example.toml"
    assert EXAMPLE.read_text(encoding="utf-8") == example_file(), rewrite
    assert max(map(len, example_file().splitlines())) <= 120


def test_example_tells_meaning_choices_and_range() -> None:
    lines = {line.partition(" = ")[0]: line for line in example_file().splitlines()}
    assert lines["fine_tune"].endswith("# train the whole network or only its head: full, head")
    assert lines["amp"].endswith("# bf16 autocast: auto (where the hardware has it), bf16, off")
    assert lines["image_size"].endswith("; 32 to 1024")
    assert lines["patience"].endswith("; at least 0")
    assert lines["role"] == 'role = "none"               # ' + keys()["sagemaker.role"].help


def dict_of(made: settings.Settings) -> dict[str, object]:
    values = {key: value for key, value, _ in made.items()}
    for key in settings.PATH_KEYS:  # relative to the file
        values[key] = Path(str(values[key])).name
    return values


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "[train]\nlr = 0.1\nbatchsize = 3\n",
            "deploy.toml line 3: unknown setting 'batchsize' in [train]",
            "batch_size",
        ),
        ("tagret = 'local'\n", "deploy.toml line 1: unknown setting 'tagret' above the first section", "target"),
        ("lr = 0.1\n", "deploy.toml line 1: unknown setting 'lr'", "lr belongs under [train]"),
        ("[train\n", "deploy.toml is not valid TOML", "deploy.example.toml"),
        ("\n[train]\nlr = 'high'\n", "deploy.toml line 3: lr must be a number", "deploy.example.toml"),
        ("[train]\nepochs = 0\n", "deploy.toml line 2: epochs must lie in 1 .. 10000, not 0", ""),
        ("train = 3\n", "deploy.toml line 1: train is a section", "[train]"),
        ("[tune.search]\nlr = 3\n", "deploy.toml: lr: 3 is not a range", "list of values"),
        ("target = 'moon'\n", "target must be one of local, docker, sagemaker", ""),
    ],
)
def test_wrong_file_is_named_with_line_and_remedy(text: str, message: str, hint: str) -> None:
    write(text)
    with pytest.raises(ConfigError) as caught:
        settings.load({}, environ={})
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_unknown_variable_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown environment variable CLASSIFIER_TRAIN_BATCHSIZE") as caught:
        settings.load({}, environ={"CLASSIFIER_TRAIN_BATCHSIZE": "3"})
    assert "CLASSIFIER_TRAIN_BATCH_SIZE" in caught.value.hint


def test_variables_of_other_programs_are_passed_over() -> None:
    settings.load({}, environ={"CLASSIFIER_ENGINE": "torch", "TRAIN_LR": "x", "CLASSIFIER_TRAIN_LR": ""})


def test_paths_in_the_file_are_relative_to_it() -> None:
    file = write("data = 'photos'\nruns_dir = '/abs'\n[train]\nweights = 'w.pth'\n", "conf/deploy.toml")
    made = settings.load({}, file=file, environ={})
    assert (made.general.data, made.general.runs_dir, made.train.weights) == ("conf/photos", "/abs", "conf/w.pth")


def test_named_file_that_is_missing_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot read nowhere.toml: No such file"):
        settings.load({}, file=Path("nowhere.toml"), environ={})


def test_search_space_of_the_file_replaces_the_default() -> None:
    write("[tune.search]\nmomentum = { low = 0.5, high = 0.9 }\noptimizer = ['sgd', 'adamw']\n")
    made = settings.load({}, environ={})
    assert made.search == {
        "momentum": Continuous(low=0.5, high=0.9),
        "optimizer": Categorical(values=("sgd", "adamw")),
    }


def test_whole_numbers_do_for_settings_with_a_fraction() -> None:
    write("[train]\nlr = 1\n")
    lr = settings.load({}, environ={}).train.lr
    assert (lr, type(lr)) == (1.0, float)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hyperparameters": 3}'])
def test_foreign_best_json_is_refused(text: str) -> None:
    best = write(text, "best.json")
    with pytest.raises(ConfigError, match=r"best.json is not a best.json"):
        settings.load({}, best=best, environ={})


def test_url_follows_where_serve_listens() -> None:
    assert settings.load({"serve.host": "0.0.0.0", "serve.port": 9000}, environ={}).url == "http://127.0.0.1:9000"
    assert settings.load({"predict.url": "https://there/"}, environ={}).url == "https://there/"


def test_every_target_that_can_be_named_is_there() -> None:
    assert tuple(TARGET_BY_NAME) == settings.TARGETS
