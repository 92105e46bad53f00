"""The managed configuration is what the API takes, and no rule lacks the tensors it reads."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator

from image_classifier.debugging.rules import RULE_BY_NAME, RULES, parse_rules
from image_classifier.sagemaker.managed_debugger import MANAGED, managed_debugger

pytestmark = pytest.mark.filterwarnings("ignore")  # botocore's own
IMAGE = "503895931360.dkr.ecr.us-east-1.amazonaws.com/sagemaker-debugger-rules:latest"


def configuration(rules: str = "all", **options: Any) -> dict[str, Any]:
    return managed_debugger(
        parse_rules(rules), evaluator_image=IMAGE, s3_output="s3://bucket/debug", save_interval=500, **options
    )


def test_every_member_is_valid_for_create_training_job() -> None:
    service = botocore.session.get_session().get_service_model("sagemaker")
    members = service.operation_model("CreateTrainingJob").input_shape.members
    for name, value in configuration(framework_metrics=True).items():
        report = ParamValidator().validate(value, members[name])
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_all_rules_of_the_table_are_emitted() -> None:
    members = configuration(framework_metrics=True)
    emitted = [
        rule["RuleConfigurationName"]
        for kind in ("DebugRuleConfigurations", "ProfilerRuleConfigurations")
        for rule in members[kind]
    ]
    expected = {rule.__name__.replace("StalledTraining", "StalledTrainingRule") for rule in RULES}
    assert set(emitted) == expected
    assert len(emitted) == len(expected)


def test_every_tensor_rule_of_the_table_has_its_counterpart_and_no_other_rule_is_named() -> None:
    assert MANAGED.keys() <= RULE_BY_NAME.keys()
    assert {rule.__name__ for rule in RULES if rule.about == "tensors"} <= MANAGED.keys()
    assert all(hasattr(RULE_BY_NAME[name], ours) for name, each in MANAGED.items() for ours in each.fields.values())


@pytest.mark.parametrize("rule", [rule.__name__ for rule in RULES if rule.about == "tensors"])
def test_a_tensor_rule_brings_the_collections_it_names(rule: str) -> None:
    members = configuration(rule)
    saved = {each["CollectionName"] for each in members["DebugHookConfig"]["CollectionConfigurations"]}
    patterns = {
        each["CollectionParameters"].get("include_regex")
        for each in members["DebugHookConfig"]["CollectionConfigurations"]
    }
    (managed,) = members["DebugRuleConfigurations"]
    named = managed["RuleParameters"].get("collection_names", "")
    assert set(filter(None, named.split(","))) <= saved
    regexes = {
        value for key, value in managed["RuleParameters"].items() if key.endswith("regex") and "Loss" not in value
    }
    assert regexes <= patterns


def test_rules_over_framework_metrics_are_left_out_by_default() -> None:
    names = {rule["RuleConfigurationName"] for rule in configuration()["ProfilerRuleConfigurations"]}
    assert "LowGPUUtilization" in names
    assert "Dataloader" not in names
