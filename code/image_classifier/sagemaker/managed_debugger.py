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
    """The managed counterpart of a tensor rule.

    Args:
        collections: that it reads.
        fields: its parameter -> our rule's field that means the same.
        constants: its parameter -> value.
        name: where it differs from ours.
    """

    collections: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    name: str = ""


def _reads(*collections: str) -> dict[str, str]:
    return {"collection_names": ",".join(collections)}


# of every tensor rule, by its name in the rule table; the others are called as ours and need no tensors
MANAGED: Mapping[str, Managed] = {
    "ExplodingTensor": Managed(
        collections=("losses", "gradients", "weights"),
        fields={"only_nan": "only_nan"},
        constants=_reads("losses", "gradients", "weights"),
    ),
    "LossNotDecreasing": Managed(
        collections=("losses",),
        fields={"num_steps": "literal_steps", "diff_percent": "diff_percent"},
        constants=_reads("losses"),
    ),
    "VanishingGradient": Managed(collections=("gradients",), fields={"threshold": "threshold"}),
    "PoorWeightInitialization": Managed(
        collections=("losses", "gradients", "relu_input"),
        constants={"activation_inputs_regex": COLLECTIONS["relu_input"]},
    ),
    "DeadRelu": Managed(collections=("relu_output",), constants={"tensor_regex": COLLECTIONS["relu_output"]}),
    "WeightUpdateRatio": Managed(collections=("weights",), fields={"small_threshold": "small"}),
    "UnchangedTensor": Managed(collections=("weights",), constants=_reads("weights")),
    "AllZero": Managed(collections=("gradients", "weights"), constants=_reads("gradients", "weights")),
    "Overfit": Managed(collections=("losses",), fields={"patience": "patience", "ratio_threshold": "ratio"}),
    "Overtraining": Managed(
        collections=("losses",),
        fields={"patience_train": "patience_train", "patience_validation": "patience_valid", "delta": "delta"},
    ),
    "ClassImbalance": Managed(
        collections=("labels", "predictions"),
        fields={"threshold_imbalance": "imbalance", "threshold_misprediction": "error"},
        constants={"labels_regex": COLLECTIONS["labels"], "predictions_regex": COLLECTIONS["predictions"]},
    ),
    "CheckInputImages": Managed(
        collections=("input_images",),
        fields={"threshold_samples": "samples"},
        constants={"regex": COLLECTIONS["input_images"], "channel": "1"},
    ),
    "StalledTraining": Managed(fields={"threshold": "threshold_s"}, name="StalledTrainingRule"),
}


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
        managed = MANAGED.get(rule.name, Managed())
        name = managed.name or rule.name
        fields = {theirs: _text(getattr(rule, ours)) for theirs, ours in managed.fields.items()}
        configuration = {
            "RuleConfigurationName": name,
            "RuleEvaluatorImage": evaluator_image,
            "RuleParameters": {"rule_to_invoke": name, **fields, **managed.constants},
        }
        if rule.name in MANAGED:
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


def _text(value: float | bool) -> str:
    return str(value) if isinstance(value, bool) else f"{value:g}"
