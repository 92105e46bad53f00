"""Prints what is particular to runs on AWS: endpoints, what delete did, what doctor found."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from image_classifier.cli import render
from image_classifier.contract.text import visible

if TYPE_CHECKING:
    from image_classifier.sagemaker.delete import Deleted
    from image_classifier.sagemaker.doctor import Check


def served(endpoint: str) -> None:
    """How to ask the endpoint, and how to get rid of it."""
    print(f"ready {endpoint}", flush=True)
    render.note(f"ask it:          python deploy.py --target sagemaker predict photo.jpg  (endpoint {endpoint})")
    render.note("stop paying:     python deploy.py delete RUN  (`status` lists the runs)")


def judged(arn: str, status: str) -> None:
    """A version in the model registry, and what can be done with it."""
    name = arn.rpartition("model-package/")[2]
    render.facts([("version", name), ("status", status), ("arn", arn)], title="Model registry")
    if status == "Approved":
        render.note(f"next: python deploy.py --target sagemaker serve {name}")
    else:
        render.note(f"it is served once it is approved: python deploy.py --target sagemaker register --approve {name}")


def deleted(what: Deleted) -> None:
    """What is gone and what is left."""
    rows = [("removed", line) for line in what.removed] + [("left", line) for line in what.left]
    render.table(["", "what"], rows)


def checks(found: Iterable[Check], *, as_json: bool) -> int:
    """What doctor found, each as soon as it is known; 1 when something has to be mended."""
    failed = False
    documents = []
    for check in found:
        failed = failed or check.state == "failed"
        if as_json:
            documents.append({"name": check.name, "state": check.state, "detail": check.detail, "hint": check.hint})
            continue
        print(visible(f"{check.state.ljust(7)}  {check.name}: {check.detail}"), flush=True)
        if check.hint and check.state != "ok":
            print(visible(f"         hint: {check.hint}"), flush=True)
    if as_json:
        render.document(documents)
    return int(failed)
