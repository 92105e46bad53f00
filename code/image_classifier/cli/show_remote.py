"""Prints what is particular to runs on AWS: endpoints, what delete did, what doctor found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from image_classifier.cli import render
from image_classifier.contract.installation import as_typed
from image_classifier.contract.text import visible

if TYPE_CHECKING:
    from image_classifier.sagemaker.cost_by_instance import CostOfThousand
    from image_classifier.sagemaker.delete import Deleted
    from image_classifier.sagemaker.doctor import Check


def served(endpoint: str) -> None:
    """How to ask the endpoint, and how to get rid of it."""
    print(f"ready {endpoint}", flush=True)
    render.note(f"ask it:          python deploy.py --target sagemaker predict photo.jpg  (endpoint {endpoint})")
    render.note("stop paying:     python deploy.py delete RUN  (`status` lists the runs)")


def costs(rows: Sequence[CostOfThousand], assumed: Sequence[str], *, left_out: str = "", as_json: bool) -> None:
    """What 1,000 predictions cost by instance type, what that takes for granted, and of what nothing is told."""
    if as_json:
        render.document({"rows": [dataclasses.asdict(row) for row in rows], "assumes": list(assumed)})
        return
    gpus = [[row.gpus] if any(each.gpus for each in rows) else [] for row in rows]
    columns = ("instance", "vCPUs", *(["GPUs"] if gpus[0] else []), "$ an hour", "predictions/s", "$ for 1,000")
    hours = ["" if row.hour is None else f"{row.hour:.3f}" for row in rows]
    cells = [
        (row.instance, str(row.cores), *its, hour, f"{row.rate:.1f}", f"{row.thousand:.5f}")
        for row, its, hour in zip(rows, gpus, hours, strict=True)
    ]
    render.table(columns, cells, numbers=columns[1:])
    for line in assumed:
        render.note(f"assumes: {line}")
    if left_out:
        render.note(f"left out: {left_out}")


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
            print(visible(as_typed(f"         hint: {check.hint}")), flush=True)
    if as_json:
        render.document(documents)
    return int(failed)
