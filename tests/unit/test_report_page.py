"""The page is one safe file whatever the names in it, and its drawings are right."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report_folders import make_job, make_tuning

from image_classifier.report import gather, gather_tuning, render, write_report
from image_classifier.report.formats import duration, number, percent, short, words
from image_classifier.report.grids import heatmap
from image_classifier.report.html import joined, tag
from image_classifier.report.job_page import SECTIONS
from image_classifier.report.parallel import TrialLine, parallel_coordinates
from image_classifier.report.scales import Scale, fit

HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "</title></style>&amp;", "Löwenzahn 日本桜")
MAX_BYTES = 2_000_000
STYLE = Path("code/image_classifier/report/style.css")


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.raw:
            self.raw[self._inside].append(data)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A failed job whose classes, files, rules and failure are attacks."""
    folder = make_job(tmp_path_factory.mktemp("hostile") / "train", classes=HOSTILE, epochs=2, test_per_class=6)
    data = folder / "output" / "data"
    (folder / "output" / "failure").write_text(f"{HOSTILE[0]} failed\nhint: {HOSTILE[1]}")
    (data / "metrics.json").unlink()
    for name in ("rules.json", "bad_images.json", "setup.json"):
        text = (data / name).read_text()
        (data / name).write_text(text.replace("GPU 43", "<script>alert(3)</script>").replace("iris", "<b onclick=x>"))
    return write_report(folder).read_text(encoding="utf-8")


def test_hostile_names_come_out_as_text(hostile_page: str) -> None:
    page = Elements(hostile_page)
    kinds = [kind for kind, _ in page.found]
    assert kinds.count("script") == 1
    assert kinds.count("style") == 1
    assert not [name for _, attributes in page.found for name in attributes if name.startswith("on") or name == "style"]
    assert all(
        (attributes["src"] or "").startswith("data:image/jpeg") for kind, attributes in page.found if kind == "img"
    )
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in hostile_page
    assert "alert" not in "".join(page.raw["script"])


def test_the_policy_lets_in_exactly_this_style_and_script(hostile_page: str) -> None:
    page = Elements(hostile_page)
    policy = next(a["content"] or "" for kind, a in page.found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256("".join(page.raw[kind]).encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_nothing_is_fetched(hostile_page: str) -> None:
    links = [a[key] or "" for _, a in Elements(hostile_page).found for key in ("src", "href", "action") if key in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in hostile_page
    assert "url(" not in hostile_page


def test_every_section_is_there_and_linked(tmp_path: Path) -> None:
    page = Elements(render(gather(make_job(tmp_path / "job", epochs=3, test_per_class=2))))
    sections = [a["id"] for kind, a in page.found if kind == "section"]
    links = [a["href"] for kind, a in page.found if kind == "a"]
    assert sections == [name for name, _, _ in SECTIONS]
    assert links == [f"#{name}" for name in sections]


def test_drawings_and_pictures_have_descriptions(tmp_path: Path) -> None:
    page = Elements(render(gather(make_job(tmp_path / "job", epochs=3))))
    charts = [a for kind, a in page.found if kind == "svg" and "chart" in (a.get("class") or "")]
    assert len(charts) >= 9
    assert all(a.get("role") == "img" and a.get("aria-label") for a in charts)
    assert all(a.get("alt") for kind, a in page.found if kind == "img")


def test_many_classes_stay_under_two_megabytes(tmp_path: Path) -> None:
    names = [f"breed {index:03}" for index in range(133)]
    page = render(gather(make_job(tmp_path / "job", classes=names, epochs=4, test_per_class=2)))
    assert len(page.encode()) < MAX_BYTES
    assert "of 133 with the most errors" in page


def test_a_tuning_page_has_a_line_for_each_trial_with_a_value(tmp_path: Path) -> None:
    facts = gather_tuning(make_tuning(tmp_path / "tune"))
    valued = sum(trial["value"] is not None for trial in facts["trials"])
    assert render(facts).count('<polyline class="trial') == valued


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<b>", tag("i", "x & y"), title='"q"') == '<p title="&quot;q&quot;">&lt;b&gt;<i>x &amp; y</i></p>'
    assert joined("a", None, ["b", [3]]) == "ab3"


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1, 0, 100), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Scale(0, 7, 0, 100), [0, 2, 4, 6]),
        (Scale(0.001, 0.1, 0, 100, log=True), [0.001, 0.01, 0.1]),
        (Scale(0.003, 0.05, 0, 100, log=True), [0.003, 0.01, 0.03]),
    ],
)
def test_ticks_are_round_and_inside(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)


def test_scales_map_their_ends_and_clip() -> None:
    log = fit([0.001, 0.1, float("nan"), -1], 300, 0, log=True)
    assert (log(0.001), log(0.01), log(0.1), log(5.0)) == pytest.approx((300, 150, 0, 0))
    assert fit([3.0, 3.0], 0, 10)(3.0) == pytest.approx(5, abs=3)


def test_heatmap_marks_zero_and_what_is_not_finite() -> None:
    drawing = heatmap("h", ["a", "b"], ["0", "1"], [[0.0, 1e-3], [float("nan"), None]], what="x", width=400)
    cells = re.findall(r'<rect class="(\w+)" x="[\d.]+" y', drawing)
    assert cells[-3:] == ["zero", "q0", "bad"]


def test_parallel_axes_take_words_and_numbers_and_one_value() -> None:
    trials = [TrialLine(i, {"lr": 0.001 * 10**i, "optimizer": "sgd", "size": 32.0}, 0.1 * i) for i in range(3)]
    drawing = parallel_coordinates(
        trials, ["lr", "optimizer", "size"], "acc", maximize=True, best=2, width=600, height=300
    )
    assert drawing.count("<polyline") == 2 * 3
    assert drawing.count(" best") == 1


def test_numbers_read_well() -> None:
    assert [number(v) for v in (0, 12, 0.12345, 1.234e-5, 1673.2, 25_300, 1.5e9, 3.398e35, float("nan"))] == [
        "0", "12", "0.123", "1.23e-5", "1673", "25.3k", "1.5G", "3.4e35", "nan",
    ]  # fmt: skip
    spaced = [duration(v).replace("\u00a0", " ") for v in (0, 3e-5, 0.0123, 3.21, 250, 11_100)]
    assert spaced == ["0", "30 µs", "12 ms", "3.2 s", "4 min 10 s", "3 h 05 min"]
    assert percent(0.9312) == "93.1\u00a0%"
    assert short("abcdefghij", 5) == "ab…ij"
    assert [words(name) for name in ("LowGPUUtilization", "IOBottleneck", "DeadRelu")] == [
        "Low GPU utilization", "IO bottleneck", "Dead ReLU",
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast(scheme: str) -> None:
    """WCAG 2.2: 4.5 for text, 3 for what carries meaning in a drawing."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[0 if scheme == "light" else 1]))
    for name in ("ink", "soft", "good", "warn", "crit", "c0"):
        assert _contrast(colours[name], colours["paper"]) >= 4.5, name
    for name in ("c1", "c2", "c3", "c4", "c5"):
        assert _contrast(colours[name], colours["paper"]) >= 3, name


def _contrast(one: str, other: str) -> float:
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_diverging_loss_is_drawn_on_a_logarithmic_scale(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job", epochs=1, test_per_class=2)
    path = folder / "output" / "data" / "steps.jsonl"
    lines = path.read_text().splitlines()[:20]
    path.write_text(
        "".join(re.sub(r'"clean_loss": [\d.]+', f'"clean_loss": 1e{i}', line) + "\n" for i, line in enumerate(lines))
    )
    (folder / "output" / "data" / "history.jsonl").unlink()
    page = render(gather(folder))
    assert "loss (nats), logarithmic" in page
    assert "Every batch is shown" in page


@pytest.mark.parametrize(
    ("train", "words_of_it"), [(0.9, "5.0\N{NO-BREAK SPACE}points higher"), (0.85, "the same"), (0.8, "points lower")]
)
def test_the_gap_between_training_and_validation_is_in_words(tmp_path: Path, train: float, words_of_it: str) -> None:
    facts = gather(make_job(tmp_path / "train", epochs=2, test_per_class=6))
    best = facts["history"][facts["outcome"]["best_epoch"] - 1]
    best |= {"train:accuracy": train, "validation:accuracy": 0.85}
    (sentence,) = re.findall(r"training accuracy was ([^.]*\.?[^.]*)\.</p>", render(facts))
    assert words_of_it in sentence
