"""The report in a real browser: it runs without a complaint, at any width, in light and dark, and on paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chromium import PROGRAM, Browser, browser
from tests.report_folders import CLASSES, HOSTILE, make_job, make_tuning

from image_classifier.report import job_page, write_report
from image_classifier.report import search_page as tuning_page
from image_classifier.report.check_page import render_check
from image_classifier.vision.check import check_dataset
from image_classifier.vision.sample_data import make_sample_data

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium: apt-get install chromium")
DESKTOP, PHONE, SMALL_PHONE = 1280, 390, 360
WIDE_NAMES = ("W" * 30, "日本桜" * 6, "M" * 17, "iiiiiiii", "a", "Löwenzahn ÄÖÜ", "tulip mmmmmmmmm")
CUT = """(() => {
  for (const each of document.querySelectorAll('details')) each.open = true;
  const cut = [];
  for (const each of document.querySelectorAll('svg text, th, td, dt, dd, li, p, h1, h2, h3, figcaption, summary')) {
    if (!each.textContent.trim() || !each.getClientRects().length) continue;
    const range = document.createRange();
    range.selectNodeContents(each);
    const box = each.tagName === 'text' ? each.getBoundingClientRect() : range.getBoundingClientRect();
    const scroll = each.parentElement.closest('.scroll, nav ul');
    let [left, right, top, bottom] = [0, innerWidth, -Infinity, Infinity];
    if (scroll) {  // what lies to the left of what scrolls, or above it, is reached by nobody
      const frame = scroll.getBoundingClientRect();
      [left, top] = [frame.left - scroll.scrollLeft, frame.top - scroll.scrollTop];
      [right, bottom] = [left + scroll.scrollWidth, top + scroll.scrollHeight];
    }
    if (box.left < left - 0.5 || box.right > right + 0.5 || box.top < top - 0.5 || box.bottom > bottom + 0.5)
      cut.push(each.textContent.trim().slice(0, 40));
  }
  return cut;
})()"""  # the texts that no scrolling brings into view whole


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests."""
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def job_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(
        make_job(tmp_path_factory.mktemp("job") / "train", classes=(*CLASSES[:-1], HOSTILE), processes=2)
    )


@pytest.fixture(scope="module")
def tuning_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_tuning(tmp_path_factory.mktemp("tuning") / "tune"))


@pytest.fixture(scope="module")
def check_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("data") / "images"
    make_sample_data(data, num_classes=2, train_per_class=10, valid_per_class=2, test_per_class=2, size=64)
    for name in (HOSTILE.replace("/", ""), "W" * 120, "日本桜" * 15):
        for label in ("bricks", "leaves"):
            shutil.copy(data / "train" / "bricks" / "bricks_0000.jpg", data / "train" / label / f"{name[:60]}.jpg")
    (data / "test" / "leaves" / "leaves_0000.jpg").write_bytes(b"")
    page = data.with_name("check.html")
    page.write_text(render_check(check_dataset(data), data), encoding="utf-8")
    return page


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


every = pytest.mark.parametrize("report", ["job_report", "tuning_report", "check_report"], indirect=True)
both = pytest.mark.parametrize("report", ["job_report", "tuning_report"], indirect=True)


@every
@pytest.mark.parametrize(("width", "dark"), [(DESKTOP, False), (DESKTOP, True), (PHONE, False)])
def test_it_loads_without_a_complaint_and_fits_the_window(
    chromium: Browser, report: Path, width: int, dark: bool
) -> None:
    chromium.problems.clear()
    chromium.open(report, width=width, dark=dark, phone=width == PHONE)
    assert chromium.problems == []
    assert chromium.run("document.documentElement.scrollWidth") == width
    background = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") != dark


@pytest.mark.parametrize("width", [SMALL_PHONE, DESKTOP])
def test_no_label_is_cut(chromium: Browser, tmp_path: Path, check_report: Path, width: int) -> None:
    search = write_report(make_tuning(tmp_path / "tune"))
    for report in (
        write_report(make_job(tmp_path / "train", processes=2)),
        write_report(make_job(tmp_path / "wide", classes=WIDE_NAMES)),
        search,
        check_report,
    ):
        chromium.open(report, width=width, phone=width == SMALL_PHONE)
        assert chromium.run(CUT) == []
        assert chromium.run("document.documentElement.scrollWidth") == width


def test_on_a_phone_the_evidence_of_a_rule_keeps_its_columns(chromium: Browser, job_report: Path) -> None:
    chromium.open(job_report, width=SMALL_PHONE, phone=True)
    heights = chromium.run(
        """[...document.querySelectorAll('.rules details')].map(each => {
          each.open = true;
          const head = each.querySelector('thead');
          return head ? head.getBoundingClientRect().height : null;
        })"""
    )
    shown = [height for height in heights if height is not None]
    assert shown
    assert min(shown) > 0


@both
def test_the_first_line_says_how_the_model_stands(chromium: Browser, report: Path) -> None:
    chromium.open(report)
    first = chromium.run("document.body.innerText.trim().split('\\n')[0]")
    assert first.startswith(("Better than guessing", "Not better than guessing", "Not known to be better"))


@both
def test_every_section_shows_something_and_every_link_leads_there(chromium: Browser, report: Path) -> None:
    page = tuning_page if report.parent.name == "tune" else job_page
    chromium.open(report)
    heights = chromium.run(
        "Object.fromEntries([...document.querySelectorAll('section')].map(s => [s.id, s.offsetHeight]))"
    )
    assert list(heights) == [name for name, _, _ in page.SECTIONS]
    assert min(heights.values()) > 60
    tops = chromium.run(
        """[...document.querySelectorAll('nav a')].map(link => {
          link.click();
          return [location.hash, document.querySelector(location.hash).getBoundingClientRect().top];
        })"""
    )
    assert [link for link, _ in tops] == [f"#{name}" for name in heights]
    assert all(-1 <= top < 900 for _, top in tops)


def test_all_pictures_are_drawn_and_no_name_is_run(chromium: Browser, job_report: Path) -> None:
    chromium.open(job_report)
    sizes = chromium.run("[...document.images].map(image => image.naturalWidth)")
    assert len(sizes) > 12
    assert min(sizes) > 0
    assert chromium.run("document.scripts.length") == 1
    assert HOSTILE in chromium.run("document.body.textContent")


def test_a_curve_tells_its_numbers_under_the_pointer(chromium: Browser, job_report: Path) -> None:
    chromium.open(job_report)
    x, y = chromium.run(
        """(async () => {
          const strip = document.querySelectorAll('#learning svg.chart')[1].querySelectorAll('.hit rect')[4];
          strip.scrollIntoView({block: 'center'});
          await new Promise(done => setTimeout(done, 100));  // the scrolling hides the tooltip
          const box = strip.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
    )
    chromium.move_pointer(x, y)
    assert chromium.run("document.getElementById('tip').hidden") is False
    told = chromium.run("document.getElementById('tip').textContent")
    assert told.startswith("epoch 5\n")
    assert "validation: " in told


def test_the_picture_of_a_search_is_drawn_alone_and_fits_its_frame(chromium: Browser, tuning_report: Path) -> None:
    chromium.problems.clear()
    chromium.open(tuning_report.with_name("tuning.svg"))
    assert chromium.problems == []
    found = chromium.run(
        """(() => {
          const root = document.documentElement, frame = root.getBoundingClientRect();
          const boxes = [...root.querySelectorAll('text, polyline, circle')].map(each => each.getBoundingClientRect());
          return {
            outside: boxes.filter(box => box.left < 0 || box.right > frame.width || box.bottom > frame.height).length,
            best: getComputedStyle(root.querySelector('.trial.best')).stroke,
            plain: getComputedStyle(root.querySelector('.trial:not(.best)')).stroke,
          };
        })()"""
    )
    assert found["outside"] == 0
    assert found["best"] == "rgb(200, 86, 10)"
    assert found["plain"] not in (found["best"], "none")


def test_it_prints(chromium: Browser, job_report: Path) -> None:
    chromium.open(job_report)
    assert chromium.pdf().startswith(b"%PDF")
