"""The managed configuration is what the API takes, and no rule lacks the tensors it reads."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from smdebug_rulesconfig import debugger_rules
from smdebug_rulesconfig.profiler_rules import rules as profiler_rules

from image_classifier.debugging.rules import RULES, parse_rules
from image_classifier.debugging.rules.base import Finding, Rule, insufficient
from image_classifier.debugging.rules.managed import COLLECTIONS, Managed
from image_classifier.debugging.rundata import RunData
from image_classifier.sagemaker.managed_debugger import managed_debugger

pytestmark = pytest.mark.filterwarnings("ignore")  # botocore's own
MANAGED: dict[str, Managed] = {name: rule.managed for name, rule in RULES.items() if rule.managed is not None}
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


def emitted(members: dict[str, Any]) -> list[dict[str, Any]]:
    return [*members.get("DebugRuleConfigurations", []), *members.get("ProfilerRuleConfigurations", [])]


def test_every_rule_that_aws_has_is_emitted_once() -> None:
    names = [rule["RuleConfigurationName"] for rule in emitted(configuration(framework_metrics=True))]
    assert sorted(names) == sorted(managed.name or name for name, managed in MANAGED.items())
    assert "StalledTrainingRule" in names


def test_a_rule_of_our_own_is_not_sent(registry: dict[str, type[Rule]]) -> None:
    class OfOurs(Rule):
        managed = None

        def judge(self, run: RunData) -> Finding:
            return insufficient("looks at nothing")

    assert "OfOurs" in registry
    assert "OfOurs" not in json.dumps(configuration(framework_metrics=True))
    alone = configuration("OfOurs")
    assert emitted(alone) == []
    assert "DebugRuleConfigurations" not in alone
    assert emitted(configuration("OfOurs,Overfit")) == emitted(configuration("Overfit"))


def test_managed_rules_are_among_those_of_awss_own_package() -> None:
    tensor_rules = json.loads((files(debugger_rules) / "rule_config_jsons" / "ruleConfigs.json").read_text())
    documented = {"OverallFrameworkMetrics"}  # in AWS's documentation; the package is older
    for name, managed in MANAGED.items():
        theirs = managed.name or name
        if managed.reads == "tensors":
            assert theirs in tensor_rules
        else:
            assert hasattr(profiler_rules, theirs) or theirs in documented


def test_every_tensor_rule_has_its_counterpart_and_it_names_parameters_that_exist() -> None:
    for name, managed in MANAGED.items():
        parameters = {each.name for each in dataclasses.fields(RULES[name])}
        assert set(managed.fields.values()) <= parameters
        assert set(managed.patterns.values()) <= set(managed.collections) & COLLECTIONS.keys()
        assert managed.reads == "tensors" or not managed.collections
    assert all(managed.reads == "tensors" for name, managed in MANAGED.items() if RULES[name].about == "tensors")


@pytest.mark.parametrize("rule", [name for name, managed in MANAGED.items() if managed.reads == "tensors"])
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
    assert names == {name for name, managed in MANAGED.items() if managed.reads == "system metrics"}
    assert "LowGPUUtilization" in names
    assert "Dataloader" not in names
