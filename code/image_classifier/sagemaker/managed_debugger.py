"""The rules as a configuration of AWS's managed Debugger and Profiler, for accounts that still have the service.

Plain dictionaries in the shapes of CreateTrainingJob; off unless somebody asks. A tuning job can never have them: its
API has no such members. What AWS has in a rule's place is what the rule's class says; a rule of our own is not sent.
Every tensor rule comes with the collections it reads: without them a managed rule ends in Error. Rules over AWS's
framework metrics, which it does not record for PyTorch 2, are left out unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.rules.managed import COLLECTIONS

LOCAL_TENSORS = "/opt/ml/output/tensors"  # where a job's hook writes, and SageMaker uploads from
PROFILING_INTERVAL_MS = 1000  # one of the six values the API takes


def managed_debugger(
    rules: Iterable[Rule], *, evaluator_image: str, s3_output: str, save_interval: int, framework_metrics: bool = False
) -> dict[str, Any]:
    """The members of CreateTrainingJob that attach the rules to a job.

    Args:
        rules: those without a managed counterpart are left out.
        evaluator_image: AWS's image of the region, `sagemaker-debugger-rules`.
        s3_output: `s3://bucket/prefix` for tensors, metrics and verdicts.
        save_interval: steps between saved tensors; losses are saved at every step.
        framework_metrics: also rules over AWS's framework metrics.

    Returns:
        DebugHookConfig, DebugRuleConfigurations, ProfilerConfig, ProfilerRuleConfigurations; empty lists are left out.
    """
    tensor_rules: list[dict[str, Any]] = []
    profiler_rules: list[dict[str, Any]] = []
    collections: dict[str, None] = {"losses": None}
    for rule in rules:
        managed = rule.managed
        if managed is None or (managed.reads == "framework metrics" and not framework_metrics):
            continue
        name = managed.name or rule.name
        fields = {theirs: _text(getattr(rule, ours)) for theirs, ours in managed.fields.items()}
        configuration = {
            "RuleConfigurationName": name,
            "RuleEvaluatorImage": evaluator_image,
            "RuleParameters": {"rule_to_invoke": name, **fields, **managed.parameters()},
        }
        (tensor_rules if managed.reads == "tensors" else profiler_rules).append(configuration)
        collections |= dict.fromkeys(managed.collections)
    members: dict[str, Any] = {
        "DebugHookConfig": {
            "LocalPath": LOCAL_TENSORS,
            "S3OutputPath": s3_output,
            "CollectionConfigurations": [_collection(name, save_interval) for name in collections],
        },
        "DebugRuleConfigurations": tensor_rules,
        "ProfilerConfig": {"S3OutputPath": s3_output, "ProfilingIntervalInMilliseconds": PROFILING_INTERVAL_MS},
        "ProfilerRuleConfigurations": profiler_rules,
    }
    return {name: value for name, value in members.items() if value != []}


def _collection(name: str, save_interval: int) -> dict[str, Any]:
    interval = 1 if name == "losses" else save_interval
    parameters = {"save_interval": str(interval)}
    if name in COLLECTIONS:
        parameters["include_regex"] = COLLECTIONS[name]
    return {"CollectionName": name, "CollectionParameters": parameters}


def _text(value: float | bool) -> str:
    return str(value) if isinstance(value, bool) else f"{value:g}"
