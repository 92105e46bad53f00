"""The rule table as a configuration of AWS's managed Debugger and Profiler, for accounts that still have the service.

Plain dictionaries in the shapes of CreateTrainingJob; off unless somebody asks. A tuning job can never have them: its
API has no such members. Every tensor rule comes with the collections it reads: without them a managed rule ends in
Error. StepOutlier, Dataloader, MaxInitializationTime and OverallFrameworkMetrics read AWS's framework metrics, which it
does not record for PyTorch 2; they are left out unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from image_classifier.debugging.rules import (
    AllZero,
    CheckInputImages,
    ClassImbalance,
    DeadRelu,
    ExplodingTensor,
    LossNotDecreasing,
    Overfit,
    Overtraining,
    PoorWeightInitialization,
    StalledTraining,
    UnchangedTensor,
    VanishingGradient,
    WeightUpdateRatio,
)
from image_classifier.debugging.rules.base import Rule

LOCAL_TENSORS = "/opt/ml/output/tensors"  # where a job's hook writes, and SageMaker uploads from
PROFILING_INTERVAL_MS = 1000  # one of the six values the API takes

# name -> what the collection holds, besides smdebug's own (losses, weights, gradients)
COLLECTIONS: Mapping[str, str] = {
    "relu_input": r".*relu_input",
    "relu_output": r".*relu_output",
    "input_images": r".*ResNet_input_0",
    "labels": r"labels_output_0",
    "predictions": r"predictions_output_0",
}
FRAMEWORK_RULES = frozenset({"StepOutlier", "Dataloader", "MaxInitializationTime", "OverallFrameworkMetrics"})


@dataclass(frozen=True, kw_only=True)
class Managed:
    """A managed rule.

    Args:
        collections: that it reads.
        parameters: name -> value, besides `rule_to_invoke`.
    """

    collections: tuple[str, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


def _managed(rule: Rule) -> Managed:
    """The managed counterpart of a tensor rule, with the parameters that mean the same there."""
    match rule:
        case ExplodingTensor():
            parameters = {"only_nan": str(rule.only_nan), "collection_names": "losses,gradients,weights"}
            return Managed(collections=("losses", "gradients", "weights"), parameters=parameters)
        case LossNotDecreasing():
            parameters = {"num_steps": str(rule.literal_steps), "diff_percent": str(rule.diff_percent)}
            return Managed(collections=("losses",), parameters={"collection_names": "losses", **parameters})
        case VanishingGradient():
            return Managed(collections=("gradients",), parameters={"threshold": str(rule.threshold)})
        case PoorWeightInitialization():
            parameters = {"activation_inputs_regex": COLLECTIONS["relu_input"]}
            return Managed(collections=("losses", "gradients", "relu_input"), parameters=parameters)
        case DeadRelu():
            parameters = {"tensor_regex": COLLECTIONS["relu_output"], "threshold_layer": str(100 * rule.threshold)}
            return Managed(collections=("relu_output",), parameters=parameters)
        case WeightUpdateRatio():
            return Managed(collections=("weights",), parameters={"small_threshold": str(rule.small)})
        case UnchangedTensor():
            return Managed(collections=("weights",), parameters={"collection_names": "weights"})
        case AllZero():
            names = "gradients,weights"
            return Managed(collections=("gradients", "weights"), parameters={"collection_names": names})
        case Overfit():
            parameters = {"patience": str(rule.patience), "ratio_threshold": str(rule.ratio)}
            return Managed(collections=("losses",), parameters={"tensor_regex": ".*CrossEntropyLoss.*", **parameters})
        case Overtraining():
            parameters = {"patience_train": str(rule.patience_train), "patience_validation": str(rule.patience_valid)}
            return Managed(collections=("losses",), parameters={**parameters, "delta": str(rule.delta)})
        case ClassImbalance():
            parameters = {
                "labels_regex": COLLECTIONS["labels"],
                "predictions_regex": COLLECTIONS["predictions"],
                "threshold_imbalance": str(rule.imbalance),
                "threshold_misprediction": str(rule.error),
                "samples": str(rule.samples),
            }
            return Managed(collections=("labels", "predictions"), parameters=parameters)
        case CheckInputImages():
            parameters = {"threshold_samples": str(rule.samples), "regex": COLLECTIONS["input_images"]}
            return Managed(collections=("input_images",), parameters={**parameters, "channel": "1"})
        case StalledTraining():
            parameters = {"threshold": str(round(rule.threshold_s)), "stop_training_on_fire": "False"}
            return Managed(collections=(), parameters=parameters, name="StalledTrainingRule")
    return Managed(collections=())


def managed_debugger(
    rules: Iterable[Rule], *, evaluator_image: str, s3_output: str, save_interval: int, framework_metrics: bool = False
) -> dict[str, Any]:
    """The members of CreateTrainingJob that attach the rules to a job.

    Args:
        rules: from the rule table.
        evaluator_image: AWS's image of the region, `sagemaker-debugger-rules`.
        s3_output: `s3://bucket/prefix` for tensors, metrics and verdicts.
        save_interval: steps between saved tensors; losses are saved at every step.
        framework_metrics: also rules over AWS's framework metrics.

    Returns:
        DebugHookConfig, DebugRuleConfigurations, ProfilerConfig, ProfilerRuleConfigurations; empty lists are left out.
    """
    tensor_rules, system_rules = [], []
    collections: dict[str, None] = {"losses": None}
    for rule in rules:
        managed = _managed(rule)
        name = managed.name or rule.name
        configuration = {
            "RuleConfigurationName": name,
            "RuleEvaluatorImage": evaluator_image,
            "RuleParameters": {"rule_to_invoke": name, **managed.parameters},
        }
        if managed.parameters:
            tensor_rules.append(configuration)
            collections |= dict.fromkeys(managed.collections)
        elif framework_metrics or name not in FRAMEWORK_RULES:
            system_rules.append(configuration)
    members: dict[str, Any] = {
        "DebugHookConfig": {
            "LocalPath": LOCAL_TENSORS,
            "S3OutputPath": s3_output,
            "CollectionConfigurations": [_collection(name, save_interval) for name in collections],
        },
        "DebugRuleConfigurations": tensor_rules,
        "ProfilerConfig": {"S3OutputPath": s3_output, "ProfilingIntervalInMilliseconds": PROFILING_INTERVAL_MS},
        "ProfilerRuleConfigurations": system_rules,
    }
    return {name: value for name, value in members.items() if value != []}


def _collection(name: str, save_interval: int) -> dict[str, Any]:
    interval = 1 if name == "losses" else save_interval
    parameters = {"save_interval": str(interval)}
    if name in COLLECTIONS:
        parameters["include_regex"] = COLLECTIONS[name]
    return {"CollectionName": name, "CollectionParameters": parameters}
