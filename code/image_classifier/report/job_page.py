"""The page of a training job: outcome first, then how it came about."""

from __future__ import annotations

from image_classifier.report import calibration, inside, labels, performance, results
from image_classifier.report.formats import count
from image_classifier.report.page import Facts, Section, page
from image_classifier.vision.network import TITLE

SECTIONS: tuple[Section, ...] = (
    ("outcome", "Outcome", results.outcome),
    ("next", "What to do next", results.what_next),
    ("learning", "Learning", results.learning),
    ("rules", "Rules", inside.rules),
    ("confusion", "Confusions", results.confusion),
    ("classes", "Classes", results.classes),
    ("mistakes", "Mistakes", results.mistakes),
    ("labels", "Labels", labels.labels),
    ("calibration", "Confidence", calibration.calibration),
    ("time", "Time", performance.time),
    ("system", "Machine", performance.system),
    ("layers", "Layers", inside.layers),
    ("data", "Data", inside.data),
    ("environment", "Environment", inside.environment),
)


def render_job(facts: Facts) -> str:
    """The facts of `facts.gather` as one HTML document."""
    found = facts["outcome"]
    parts = [f"{TITLE}, {count(found['classes'], 'class', 'classes')}" if found["classes"] else TITLE]
    parts += [facts["environment"][name] for name in ("device", "number format") if name in facts["environment"]]
    return page(facts, f"Training {facts['name']}".rstrip(), " · ".join(parts), SECTIONS)
