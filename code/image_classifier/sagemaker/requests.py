"""Request bodies of jobs: settings in, dictionaries in botocore's form out. Pure functions that call nothing.

What `--dry-run` prints is what these return, and what is sent is what `--dry-run` prints.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from image_classifier.contract.config import TrainConfig, Value, format_value
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.metrics import METRIC_BY_NAME, METRICS, running_best
from image_classifier.contract.paths import SHARED_CHECKPOINTS_VARIABLE
from image_classifier.contract.search import Categorical, Integer, SearchSpace
from image_classifier.sagemaker.aws_settings import NONE, SageMakerSettings, has_local_storage
from image_classifier.sagemaker.images import Image
from image_classifier.tuning.tune_settings import TuneSettings

Body = dict[str, Any]

JOB_NAME_CHARS = 63
TUNING_NAME_CHARS = 32
CHECKPOINT_PATH = "/opt/ml/checkpoints"
RUN_TAG = "image-classifier:run"
ID_TAG = "image-classifier:id"


@dataclass(frozen=True, kw_only=True)
class ApiRequest:
    """One API call: `ApiRequest("sagemaker", "create_model", {...})`."""

    service: str
    operation: str
    body: Body

    def to_json(self) -> Body:
        """As `--dry-run` prints it."""
        return {"service": self.service, "operation": self.operation, "request": self.body}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run's things go.

    Args:
        run: the run folder's name; the S3 folder has the same.
        id: tells this run from another one of the same name, in a tag.
        root: `s3://BUCKET/PREFIX`.
    """

    run: str
    id: str
    root: str

    @property
    def output(self) -> str:
        return f"{self.root}/runs/{self.run}/output"

    @property
    def checkpoints(self) -> str:
        # ends with a slash: without it the checkpoints of run-1 would also bring those of run-10
        return f"{self.root}/runs/{self.run}/checkpoints/"

    @property
    def captured(self) -> str:
        return f"{self.root}/captured"

    @property
    def answers(self) -> str:
        return f"{self.root}/runs/{self.run}/answers"


def job_name(run: str, limit: int = JOB_NAME_CHARS, suffix: str = "") -> str:
    """A run's name as a name on SageMaker: letters, digits and single dashes, shortened to `limit`.

    What is shortened ends with a few digits of a hash, so that two long names do not become one.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", run).strip("-")
    room = limit - len(suffix)
    if name != run or len(name) > room:
        digest = hashlib.sha256(run.encode()).hexdigest()[:4]
        name = name[: room - 5].rstrip("-") + "-" + digest
    return name + suffix


def tags(place: Place, settings: SageMakerSettings) -> list[Body]:
    """The tags of everything a run makes."""
    wanted = {RUN_TAG: place.run, ID_TAG: place.id, **settings.parsed_tags()}
    return [{"Key": key, "Value": value} for key, value in wanted.items()]


def channels(uris: Mapping[str, str], settings: SageMakerSettings) -> list[Body]:
    """`InputDataConfig`.

    Args:
        uris: channel -> S3 folder, with a slash at its end.
    """
    return [
        {
            "ChannelName": name,
            # weights are one file that is read once: they are always copied
            "InputMode": "File" if name == "weights" else settings.input_mode,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": uri,
                    "S3DataDistributionType": "FullyReplicated",
                }
            },
        }
        for name, uri in uris.items()
    ]


def metric_definitions() -> list[Body]:
    """Name and regular expression of every metric the trainer logs."""
    return [{"Name": metric.name, "Regex": metric.regex} for metric in METRICS]


def training_job(
    name: str,
    config: TrainConfig,
    settings: SageMakerSettings,
    *,
    image: Image,
    data: Mapping[str, str],
    place: Place,
    debugger: Mapping[str, Any] | None = None,
) -> ApiRequest:
    """CreateTrainingJob.

    Args:
        data: channel -> S3 folder.
        debugger: the managed Debugger's members (DebugHookConfig, ...), for accounts that have it.
    """
    body: Body = {
        "TrainingJobName": name,
        "HyperParameters": config.to_hyperparameters(),
        "AlgorithmSpecification": {
            "TrainingImage": image.uri,
            "TrainingInputMode": settings.input_mode,
            "MetricDefinitions": metric_definitions(),
            "EnableSageMakerMetricsTimeSeries": True,
        },
        "CheckpointConfig": {"S3Uri": place.checkpoints, "LocalPath": CHECKPOINT_PATH},
        "Tags": tags(place, settings),
        **_job_parts(settings, image, data, place),
        **(debugger or {}),
    }
    if settings.mlflow != NONE:
        named = {"MlflowExperimentName": settings.prefix.strip("/"), "MlflowRunName": place.run}
        body["MlflowConfig"] = {"MlflowResourceArn": settings.mlflow, **named}
    if settings.remote_debug:
        body["RemoteDebugConfig"] = {"EnableRemoteDebug": True}
    return ApiRequest(service="sagemaker", operation="create_training_job", body=body)


def tuning_job(
    name: str,
    config: TrainConfig,
    search: SearchSpace,
    tune: TuneSettings,
    settings: SageMakerSettings,
    *,
    image: Image,
    data: Mapping[str, str],
    place: Place,
) -> ApiRequest:
    """CreateHyperParameterTuningJob: the same search space and the same trials as on this machine.

    The objective is the running best of the one in the settings: SageMaker judges a trial by the last value it logged,
    which is not its best epoch's.
    """
    objective = METRIC_BY_NAME[running_best(tune.objective)]
    static = {key: value for key, value in config.to_hyperparameters().items() if key not in search}
    early = settings.early_stopping and tune.strategy != "Hyperband"
    job_config: Body = {
        "Strategy": tune.strategy,
        "HyperParameterTuningJobObjective": {
            "Type": "Maximize" if objective.maximize else "Minimize",
            "MetricName": objective.name,
        },
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": tune.trials,
            "MaxParallelTrainingJobs": min(tune.parallel, tune.trials),
        },
        "ParameterRanges": parameter_ranges(search),
        "TrainingJobEarlyStoppingType": "Auto" if early else "Off",
        "RandomSeed": tune.seed,
    }
    if tune.strategy == "Hyperband":
        limits = {"MinResource": 1, "MaxResource": config.epochs}
        job_config["StrategyConfig"] = {"HyperbandStrategyConfig": limits}
    definition: Body = {
        "StaticHyperParameters": static,
        "AlgorithmSpecification": {
            "TrainingImage": image.uri,
            "TrainingInputMode": settings.input_mode,
            "MetricDefinitions": metric_definitions(),
        },
        **_job_parts(settings, image, data, place),
    }
    if settings.train_fallbacks != NONE:
        definition["HyperParameterTuningResourceConfig"] = _prioritized(definition.pop("ResourceConfig"))
    if settings.spot:
        definition["CheckpointConfig"] = {"S3Uri": place.checkpoints, "LocalPath": CHECKPOINT_PATH}
        definition["Environment"] = {SHARED_CHECKPOINTS_VARIABLE: "1"}
    body = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": job_config,
        "TrainingJobDefinition": definition,
        "Tags": tags(place, settings),
    }
    return ApiRequest(service="sagemaker", operation="create_hyper_parameter_tuning_job", body=body)


def _prioritized(resources: Body) -> Body:
    """`HyperParameterTuningResourceConfig`: what trials have instead of a training job's `InstancePreferences`."""
    volume = {"VolumeSizeInGB": resources["VolumeSizeInGB"]}
    return {
        "AllocationStrategy": "Prioritized",
        "InstanceConfigs": [each | volume for each in resources["InstancePreferences"]],
        **{name: value for name, value in resources.items() if name == "VolumeKmsKeyId"},
    }


def parameter_ranges(search: SearchSpace) -> Body:
    """`ParameterRanges`; every bound and value is a string.

    All three lists are there, empty or not: `HyperparameterTuner.attach` of the SageMaker SDK reads each of them.
    """
    continuous: list[Body] = []
    integer: list[Body] = []
    categorical: list[Body] = []
    for name, spec in search.items():
        if isinstance(spec, Categorical):
            categorical.append({"Name": name, "Values": [format_value(value) for value in spec.values]})
            continue
        bounds = {
            "Name": name,
            "MinValue": format_value(spec.low),
            "MaxValue": format_value(spec.high),
            "ScalingType": "Logarithmic" if spec.log else "Linear",
        }
        (integer if isinstance(spec, Integer) else continuous).append(bounds)
    return {
        "ContinuousParameterRanges": continuous,
        "IntegerParameterRanges": integer,
        "CategoricalParameterRanges": categorical,
    }


def _job_parts(settings: SageMakerSettings, image: Image, data: Mapping[str, str], place: Place) -> Body:
    """What a training job and the trials of a tuning job have in common."""
    if image.cuda_major >= 13 and any(instance.startswith("ml.p3") for instance in settings.train_types):
        raise ConfigError("CUDA 13 does not run on the V100 of ml.p3", "choose ml.g4dn or newer, or CUDA 12 images")
    resources: Body = {
        "InstanceType": settings.train_instance,
        "InstanceCount": settings.train_instances,
        "VolumeSizeInGB": settings.volume_gb,
    }
    if settings.train_fallbacks != NONE:
        del resources["InstanceType"], resources["InstanceCount"]
        each = [{"InstanceType": name, "InstanceCount": settings.train_instances} for name in settings.train_types]
        resources["InstancePreferences"] = each
    if not any(has_local_storage(instance) for instance in settings.train_types):
        resources |= only(VolumeKmsKeyId=settings.kms_key)
    resources |= only(TrainingPlanArn=settings.training_plan)
    if settings.warm_pool_s:
        resources["KeepAlivePeriodInSeconds"] = settings.warm_pool_s
    limits = {"MaxRuntimeInSeconds": settings.max_run_s}
    if settings.spot:
        limits["MaxWaitTimeInSeconds"] = settings.max_wait_s or 2 * settings.max_run_s
    parts: Body = {
        "RoleArn": settings.role,
        "InputDataConfig": channels(data, settings),
        "OutputDataConfig": {"S3OutputPath": place.output, **only(KmsKeyId=settings.kms_key)},
        "ResourceConfig": resources,
        "StoppingCondition": limits,
        "EnableNetworkIsolation": settings.network_isolation,
        "EnableInterContainerTrafficEncryption": settings.encrypt_traffic,
        "EnableManagedSpotTraining": settings.spot,
    }
    if vpc := settings.vpc():
        parts["VpcConfig"] = vpc
    if settings.retries:
        parts["RetryStrategy"] = {"MaximumRetryAttempts": settings.retries}
    return parts


def only(**values: Value) -> Body:
    """The members that are not `none`."""
    return {key: value for key, value in values.items() if value != NONE}
