"""What is known of instance types: which have a GPU, a disk, another processor, and what they cost."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import botocore.session
import pytest
from tests.aws.conftest import ROLE

from image_classifier.contract.errors import ConfigError
from image_classifier.sagemaker import cost
from image_classifier.sagemaker.aws_settings import (
    SageMakerSettings,
    has_local_storage,
    is_arm,
    is_gpu,
    needs_newest_driver,
)
from image_classifier.sagemaker.cost_by_instance import cost_of_thousand

SETTINGS = SageMakerSettings(role=ROLE)


def test_instances_are_told_apart() -> None:
    assert is_gpu("ml.g5.xlarge")
    assert not is_gpu("ml.c7i.xlarge")
    assert all(has_local_storage(f"ml.{family}.xlarge") for family in ("g4dn", "g5", "g6", "p4d", "m5d", "c6id"))
    assert not any(has_local_storage(f"ml.{family}.xlarge") for family in ("m5", "c7i", "p3"))


def test_cost_is_an_upper_bound() -> None:
    spot = replace(SETTINGS, train_instances=2, max_run_s=7200)
    assert cost.training(spot, jobs=3).most == pytest.approx(1.408 * 2 * 2 * 3)
    assert cost.training(replace(SETTINGS, train_instance="ml.p5.48xlarge")).most is None
    assert cost.endpoint(replace(SETTINGS, max_instances=2)).most == pytest.approx(0.214 * 2 * 730)
    assert "nothing while idle" in cost.endpoint(SageMakerSettings(variant="serverless")).lines[0]
    assert str(cost.prices()["date"]) in cost.training(SETTINGS).lines[1]


@pytest.mark.parametrize("instance", ["ml.c8g.xlarge", "ml.m6gd.large", "ml.c6gn.large", "ml.p6e-gb200.36xlarge"])
@pytest.mark.parametrize("setting", ["train_instance", "serve_instance"])
def test_arm64_is_refused_before_anything_is_made(instance: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} is {instance}, whose processor is arm64"):
        SageMakerSettings(**{setting: instance})


def test_every_instance_type_of_the_service_is_told_apart() -> None:
    """Of botocore's own list, so that a new family is seen when it comes."""
    model = botocore.session.get_session().get_service_model("sagemaker")
    kinds = ("TrainingInstanceType", "ProductionVariantInstanceType", "TransformInstanceType")
    names = {str(name) for kind in kinds for name in model.shape_for(kind).enum}
    families = {name.split(".")[1] for name in names}
    gpus = {each for each in families if is_gpu(f"ml.{each}.xlarge")}
    assert gpus == {each for each in families if re.match(r"[gp]\d", each)}
    arm = {each for each in families if is_arm(f"ml.{each}.xlarge")}
    assert arm == {each for each in families if re.search(r"\dg", each) or each.startswith("p6e-gb")}
    assert {each for each in gpus if needs_newest_driver(f"ml.{each}.xlarge")} == {"g7", "g7e", "p6-b200", "p6-b300"}


def test_a_thousand_predictions_cost_what_the_rate_the_cores_and_the_price_say() -> None:
    rows, assumed = cost_of_thousand(20.0, 2, SETTINGS, busy=0.5)
    by_name = {row.instance: row for row in rows}
    row = by_name["ml.c7i.xlarge"]
    assert (row.cores, row.rate, row.hour) == (4, 40.0, 0.214)
    assert row.thousand == pytest.approx(0.214 / (40 * 0.5 * 3600) * 1000)
    assert [row.thousand for row in rows] == sorted(row.thousand for row in rows)
    assert not [name for name in by_name if is_gpu(name)]
    assert by_name["serverless, 4096 MB"].thousand == pytest.approx(0.00002 * 4 / 10 * 1000)
    assert "50%" in " ".join(assumed)


def test_the_guide_names_every_gpu_family_of_this_botocore() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    names = [
        name
        for shape in ("ProductionVariantInstanceType", "TrainingInstanceType", "TransformInstanceType")
        for name in model.shape_for(shape).metadata["enum"]
        if is_gpu(name) and not is_arm(name)
    ]
    told = (Path(__file__).parents[2] / "docs" / "sagemaker.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"\| GPU instances \|.*?\n\n", told, re.DOTALL)
    listed = set(re.findall(r"ml\.([a-z0-9-]+)", table))
    assert listed == {name.split(".")[1] for name in names} - {"p2"}  # K80: no CUDA 12 runs on it
