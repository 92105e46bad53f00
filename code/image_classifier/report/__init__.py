"""The report of a job: report.html, one file that explains itself, and report.json, the same facts for programs.

    facts, search_facts     what there is to say, gathered from a folder
    curves, timeline, layers, processes     parts of it, from RunData and its measures; answers, dataset: other parts
    advice                  what to do next
    job_page, search_page   the facts as sections (results, inside, ...) on a page (page, style.css, script.js)
    search_picture          the drawings of a search's page as one SVG file
    charts, grids           drawings (chart.css; scales, formats and html are below them)

Needs the standard library, numpy and Pillow; runs in the training container and on a laptop alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from image_classifier.contract.files import write_text
from image_classifier.contract.outputs import REPORT, REPORT_HTML, TUNING_PICTURE
from image_classifier.contract.text import visible
from image_classifier.report.facts import gather, to_text
from image_classifier.report.job_page import render_job
from image_classifier.report.search_facts import gather_tuning, is_tuning
from image_classifier.report.search_page import render_tuning
from image_classifier.report.search_picture import draw_tuning
from image_classifier.report.sources import locate

__all__ = ["gather", "gather_tuning", "render", "write_report"]


def render(facts: Mapping[str, Any]) -> str:
    """The facts of a training job or a tuning run as one self-contained HTML document.

    What HTML has no character for, or what would turn the direction of reading, is shown as an escape.
    """
    page = render_tuning(facts) if facts["kind"] == "tune" else render_job(facts)
    return visible(page, keep="\n\t")


def write_report(folder: Path, *, name: str = "") -> Path:
    """Gathers the facts in `folder`, a training job's or a tuning run's, and writes report.html and report.json.

    Beside those of a tuning run it writes tuning.svg, the drawings alone.

    Args:
        name: of the job, for the heading; without it the folder's, or that of an earlier report.

    Returns:
        The path of report.html: in output/data of a job, at the top of a tuning run.

    Raises:
        DataError: there is nothing to report on.
        PlatformError: the disk is full, or the folder cannot be written.
    """
    tuning = is_tuning(folder)
    facts = gather_tuning(folder) if tuning else gather(folder, name=name)
    target = folder if tuning else locate(folder).data
    write_text(target / REPORT_HTML, render(facts))
    write_text(target / REPORT.name, to_text(facts))
    if tuning:
        write_text(target / TUNING_PICTURE, visible(draw_tuning(facts), keep="\n\t"))  # XML knows no control
    return target / REPORT_HTML
