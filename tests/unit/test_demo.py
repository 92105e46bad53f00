from pathlib import Path

import pytest

from image_classifier.cli import settings
from image_classifier.cli.demo import SETTINGS, Expected, compare
from image_classifier.contract.search import Range
from image_classifier.launch.client import Answer

EXPECTED = {
    "a.jpg": Expected(label="daisy", probability=0.9),
    "b.jpg": Expected(label="rose", probability=0.6),
}


def answers(**changed: Answer) -> list[Answer]:
    same = {
        "a": Answer(file="a.jpg", predictions=(("daisy", 0.9001),)),
        "b": Answer(file="b.jpg", predictions=(("rose", 0.5999),)),
    }
    return list((same | changed).values())


def test_answers_equal_to_the_trainings_pass() -> None:
    assert compare(answers(), EXPECTED) == []


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (Answer(file="b.jpg", predictions=(("daisy", 0.6),)), "b.jpg: served daisy 0.6000, training said rose 0.6000"),
        (Answer(file="b.jpg", predictions=(("rose", 0.55),)), "b.jpg: served rose 0.5500, training said rose 0.6000"),
        (Answer(file="b.jpg", error="internal error"), "b.jpg: internal error"),
    ],
)
def test_an_answer_that_differs_is_told(answer: Answer, sentence: str) -> None:
    assert compare(answers(b=answer), EXPECTED) == [sentence]


def test_an_image_that_only_one_side_saw_is_told() -> None:
    more = [*answers(), Answer(file="c.jpg", predictions=(("rose", 1.0),))]
    assert compare(more, EXPECTED) == ["c.jpg: training did not see this image"]
    assert compare(answers()[:1], EXPECTED) == ["b.jpg: training saw this image, the endpoint was not asked"]


def test_the_demos_settings_are_valid_and_download_nothing(tmp_path: Path) -> None:
    file = tmp_path / settings.FILE_NAME
    file.write_text(SETTINGS, encoding="utf-8")
    chosen = settings.load({}, file=file, environ={})
    searched: dict[str, Range] = dict(chosen.search)
    assert chosen.train.weights == "none"
    assert set(searched) == {"lr", "batch_size"}
    assert Path(chosen.general.runs_dir).parent == tmp_path
