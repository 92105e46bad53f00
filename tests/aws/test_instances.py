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
from image_classifier.sagemaker.accelerators import accelerators_of
from image_classifier.sagemaker.aws_settings import (
    SageMakerSettings,
    has_local_storage,
    is_arm,
    is_gpu,
    needs_newest_driver,
)
from image_classifier.sagemaker.cost_by_instance import cost_of_measured, cost_of_thousand, vcpus_of
from image_classifier.sagemaker.validation import words_of

SETTINGS = SageMakerSettings(role=ROLE)


def test_instances_are_told_apart() -> None:
    assert is_gpu("ml.g5.xlarge")
    assert not is_gpu("ml.c7i.xlarge")
    assert all(has_local_storage(f"ml.{family}.xlarge") for family in ("g4dn", "g5", "g6", "p4d", "m5d", "c6id"))
    assert not any(has_local_storage(f"ml.{family}.xlarge") for family in ("m5", "c7i", "p3"))


def test_cost_is_an_upper_bound() -> None:
    spot = replace(SETTINGS, train_instances=2, max_run_s=7200)
    assert cost.training(spot, jobs=3).most == pytest.approx(1.408 * 2 * 2 * 3)
    unknown = cost.training(replace(SETTINGS, train_instance="ml.p5.48xlarge"))
    assert unknown.most is None
    assert "the price of ml.p5.48xlarge (8 x H100) is not in the table of" in unknown.lines[0]
    assert cost.endpoint(replace(SETTINGS, max_instances=2)).most == pytest.approx(0.214 * 2 * 730)
    assert "nothing while idle" in cost.endpoint(SageMakerSettings(variant="serverless")).lines[0]
    assert str(cost.prices()["date"]) in cost.training(SETTINGS).lines[1]


@pytest.mark.parametrize(
    ("setting", "instance"),
    [
        *(("train_instance", each) for each in ("ml.c8g.xlarge", "ml.m6gd.large", "ml.p6e-gb200.36xlarge")),
        *(("train_fallbacks", each) for each in ("ml.c8g.xlarge", "ml.g5.2xlarge, ml.p6e-gb200.36xlarge")),
        ("serve_instance", "ml.p6e-gb200.36xlarge"),
    ],
)
def test_arm64_is_refused_for_what_there_is_no_image_for(setting: str, instance: str) -> None:
    name = instance.rpartition(" ")[2]
    with pytest.raises(ConfigError, match=f"{setting} is {name}, whose processor is arm64"):
        SageMakerSettings(**{setting: instance})


@pytest.mark.parametrize("instance", ["ml.c8g.xlarge", "ml.m6gd.large", "ml.c6gn.large", "ml.r8g.medium"])
def test_an_endpoint_takes_arm64_and_nothing_else_beside_it(instance: str) -> None:
    assert SageMakerSettings(serve_instance=instance, serve_fallbacks="ml.c7g.xlarge").serves_on_arm
    assert not SageMakerSettings(serve_instance=instance, variant="serverless").serves_on_arm
    assert not SageMakerSettings(serve_instance="ml.c7i.xlarge").serves_on_arm
    for first, second in ((instance, "ml.c7i.xlarge"), ("ml.c7i.xlarge", instance)):
        with pytest.raises(ConfigError, match="all arm64 or none"):
            SageMakerSettings(serve_instance=first, serve_fallbacks=second)


def test_every_type_that_an_endpoint_may_have_is_answered_with_a_cost_or_with_what_is_missing() -> None:
    """Of botocore's own list: each with a price that is given, and without one by a sentence that names its GPUs."""
    names = words_of("sagemaker", "ProductionVariantInstanceType")
    assert {"ml.g6e.xlarge", "ml.g7.2xlarge", "ml.g7e.2xlarge", "ml.p5.4xlarge", "ml.c8g.medium"} < set(names)
    for name in names:
        row, assumed = cost_of_measured(name, 10.0, hour=3.6)
        assert row.thousand == pytest.approx(0.1), name
        assert row.cores >= 1
        assert bool(row.gpus) == is_gpu(name), name
        assert assumed == ["the instance is busy for 100% of the hours that are paid"]
        if name in cost.prices()["hour"]:
            assert cost_of_measured(name, 10.0)[0].hour == cost.prices()["hour"][name]
            continue
        with pytest.raises(ConfigError, match=f"the price of {name}") as caught:
            cost_of_measured(name, 10.0)
        assert "--hour" in caught.value.hint
        if is_gpu(name):
            assert row.gpus in caught.value.message


@pytest.mark.parametrize(
    ("instance", "gpus", "vcpus"),
    [
        ("ml.g6e.12xlarge", "4 x L40S", 48),
        ("ml.g7e.12xlarge", "2 x RTX PRO 6000", 48),
        ("ml.g7.8xlarge", "RTX PRO 4500, their number is not known here", 32),
        ("ml.p5.4xlarge", "1 x H100", 16),
        ("ml.p5en.48xlarge", "8 x H200", 192),
        ("ml.p6-b300.48xlarge", "8 x B300", 192),
        ("ml.c8g.medium", "", 1),
        ("ml.c4.8xlarge", "", 36),
    ],
)
def test_gpus_and_vcpus_are_those_of_awss_pages(instance: str, gpus: str, vcpus: int) -> None:
    assert (str(accelerators_of(instance) or ""), vcpus_of(instance)) == (gpus, vcpus)


@pytest.mark.parametrize(
    ("typed", "hint"), [("ml.g6e.xlarg", "ml.g6e.xlarge"), ("c8g.large", "ml.c8g.large"), ("", "ml."), ("x", "ml.")]
)
def test_a_type_that_sagemaker_does_not_have_is_a_sentence(typed: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="SageMaker has no endpoints on") as caught:
        cost_of_measured(typed, 10.0, hour=1.0)
    assert hint in caught.value.hint


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
