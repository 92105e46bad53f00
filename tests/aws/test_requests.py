"""Request bodies and the validator: no server, only botocore's model of the API."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from tests.aws.conftest import REGISTRY, ROLE

from image_classifier.cli.settings import TuneSettings
from image_classifier.contract.config import TrainConfig
from image_classifier.contract.errors import ConfigError
from image_classifier.contract.search import Categorical, Continuous, Integer
from image_classifier.sagemaker import cost, endpoint_requests, requests
from image_classifier.sagemaker.aws_settings import (
    SageMakerSettings,
)
from image_classifier.sagemaker.images import parse_uri
from image_classifier.sagemaker.parent_searches import warm_start
from image_classifier.sagemaker.requests import ApiRequest, Place, job_name
from image_classifier.sagemaker.training_job import pascal
from image_classifier.sagemaker.validation import validate

PLACE = Place(run="train-20261122-120000", id="0123456789abcdef", root="s3://bucket/image-classifier")
IMAGE = parse_uri(f"{REGISTRY}/image-classifier-train@sha256:{'0' * 64}", 13)
DATA = {"train": "s3://bucket/data/train/", "valid": "s3://bucket/data/valid/"}
SETTINGS = SageMakerSettings(role=ROLE)


def check(request: ApiRequest) -> dict[str, Any]:
    validate(request.service, pascal(request.operation), request.body)
    return request.body


def training(settings: SageMakerSettings = SETTINGS, config: TrainConfig | None = None) -> dict[str, Any]:
    config = config or TrainConfig()
    return check(requests.training_job("train-1", config, settings, image=IMAGE, data=DATA, place=PLACE))


def test_body_of_a_default_training_job() -> None:
    body = training()
    definitions = body["AlgorithmSpecification"].pop("MetricDefinitions")
    assert {"Name": "validation:accuracy"}.items() <= definitions[4].items()
    assert body.pop("HyperParameters") == TrainConfig().to_hyperparameters()
    source = {"S3DataType": "S3Prefix", "S3DataDistributionType": "FullyReplicated"}
    assert body == {
        "TrainingJobName": "train-1",
        "AlgorithmSpecification": {
            "TrainingImage": IMAGE.uri,
            "TrainingInputMode": "File",
            "EnableSageMakerMetricsTimeSeries": True,
        },
        "RoleArn": ROLE,
        "InputDataConfig": [
            {"ChannelName": name, "InputMode": "File", "DataSource": {"S3DataSource": {**source, "S3Uri": uri}}}
            for name, uri in DATA.items()
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/image-classifier/runs/train-20261122-120000/output"},
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 14_400},
        "CheckpointConfig": {
            "S3Uri": "s3://bucket/image-classifier/runs/train-20261122-120000/checkpoints/",
            "LocalPath": "/opt/ml/checkpoints",
        },
        "EnableNetworkIsolation": False,
        "EnableInterContainerTrafficEncryption": False,
        "EnableManagedSpotTraining": False,
        "Tags": [
            {"Key": "image-classifier:run", "Value": PLACE.run},
            {"Key": "image-classifier:id", "Value": PLACE.id},
        ],
    }


def test_disk_key_is_left_out_where_the_instance_has_its_own_disks() -> None:
    with_key = replace(SETTINGS, kms_key="alias/key")
    assert "VolumeKmsKeyId" not in training(with_key)["ResourceConfig"]
    on_ebs = replace(with_key, train_instance="ml.m5.xlarge")
    assert training(on_ebs)["ResourceConfig"]["VolumeKmsKeyId"] == "alias/key"
    assert training(on_ebs)["OutputDataConfig"]["KmsKeyId"] == "alias/key"


def test_many_instances_stream_encrypted_and_isolated() -> None:
    body = training(
        replace(SETTINGS, train_instances=2, input_mode="FastFile", encrypt_traffic=True, network_isolation=True)
    )
    assert body["ResourceConfig"]["InstanceCount"] == 2
    assert {channel["InputMode"] for channel in body["InputDataConfig"]} == {"FastFile"}
    assert body["EnableInterContainerTrafficEncryption"]
    assert body["EnableNetworkIsolation"]


def test_every_kind_of_range_is_a_string_range() -> None:
    search = {
        "lr": Continuous(low=0.001, high=0.1, log=True),
        "epochs": Integer(low=2, high=9),
        "optimizer": Categorical(values=("sgd", "adamw")),
    }
    request = requests.tuning_job(
        "tune-1", TrainConfig(), search, TuneSettings(), SETTINGS, image=IMAGE, data=DATA, place=PLACE
    )
    ranges = check(request)["HyperParameterTuningJobConfig"]["ParameterRanges"]
    assert ranges["IntegerParameterRanges"] == [
        {"Name": "epochs", "MinValue": "2", "MaxValue": "9", "ScalingType": "Linear"}
    ]
    assert ranges["CategoricalParameterRanges"] == [{"Name": "optimizer", "Values": ["sgd", "adamw"]}]


@pytest.mark.parametrize(
    "spec", [Continuous(low=0.1, high=0.2, log=True), Integer(low=2, high=9), Categorical(values=(0.1, 0.2))]
)
def test_a_tuning_request_has_all_three_lists_of_ranges(spec: Continuous | Integer | Categorical) -> None:
    """`HyperparameterTuner.attach` of the SageMaker SDK reads each of them."""
    search = {"epochs" if isinstance(spec, Integer) else "lr": spec}
    request = requests.tuning_job(
        "tune-1", TrainConfig(), search, TuneSettings(), SETTINGS, image=IMAGE, data=DATA, place=PLACE
    )
    ranges = check(request)["HyperParameterTuningJobConfig"]["ParameterRanges"]
    assert sorted(ranges) == [f"{kind}ParameterRanges" for kind in ("Categorical", "Continuous", "Integer")]
    assert sorted(len(each) for each in ranges.values()) == [0, 0, 1]


@pytest.mark.parametrize(
    ("errors", "invocations", "fires"),
    [
        (1, 1, False),
        (2, 2, False),
        (1, 60, False),
        (3, 10_000, False),
        (3, 3, True),
        (20, 1000, True),
        (20, 1001, False),
    ],
)
def test_the_alarm_of_an_update_counts_a_share_of_server_errors_and_no_single_ones(
    errors: int, invocations: int, fires: bool
) -> None:
    alarm = check(endpoint_requests.alarm("endpoint", SETTINGS, place=PLACE))
    *metrics, share = alarm["Metrics"]
    names = {each["Id"]: each["MetricStat"]["Metric"]["MetricName"] for each in metrics}
    assert names == {"errors": "Invocation5XXErrors", "invocations": "Invocations"}
    assert {(each["MetricStat"]["Stat"], each["MetricStat"]["Period"]) for each in metrics} == {("Sum", 60)}
    assert [each["ReturnData"] for each in alarm["Metrics"]] == [False, False, True]
    values = {"errors": errors, "invocations": invocations, "IF": lambda condition, yes, no: yes if condition else no}
    got = eval(share["Expression"], {"__builtins__": {}}, values)
    assert (got >= alarm["Threshold"]) is fires


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spot": True, "warm_pool_s": 60}, "spot instances cannot be kept warm"),
        ({"max_wait_s": 60}, "max_wait_s is for spot jobs"),
        ({"spot": True, "max_wait_s": 60}, "cannot be below max_run_s"),
        ({"subnets": "subnet-1"}, "needs both subnets and security_groups"),
        ({"min_instances": 0}, "only an async endpoint"),
        ({"role": "my-role"}, "not an ARN"),
        ({"variant": "serverless", "capture_percent": 5}, "a serverless endpoint cannot have data capture"),
        ({"variant": "serverless", "network_isolation": True}, "cannot have network_isolation"),
        ({"variant": "serverless", "serverless_memory_mb": 1500}, "multiple of 1024"),
        ({"warm_pool_s": 30_000}, "warm_pool_s must lie in 0 .. 21600"),
        ({"serve_instances": 2, "min_instances": 3, "max_instances": 3}, "below min_instances"),
        ({"spot": True, "training_plan": "arn:aws:x"}, "no spot instances"),
        ({"variant": "serverless", "ssm_access": True}, "cannot have ssm_access"),
        ({"variant": "serverless", "capacity_reservation": "arn:aws:x"}, "cannot have a capacity_reservation"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SageMakerSettings(**settings)


def test_tags_are_pairs() -> None:
    assert SageMakerSettings(tags="a=1, b = two").parsed_tags() == {"a": "1", "b": "two"}
    with pytest.raises(ConfigError, match="tags are key=value pairs"):
        SageMakerSettings(tags="nonsense").parsed_tags()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TrainingJobName": "x" * 64}, "length of TrainingJobName is 64"),
        ({"TrainingJobName": "under_score"}, "TrainingJobName is 'under_score', which does not match"),
        ({"RoleArn": "service-role/classifier-is-no-arn"}, "RoleArn"),
        ({"ResourceConfig": {"InstanceType": "ml.g5.huge", "InstanceCount": 1}}, "not one of"),
        ({"ResourceConfig": {"InstanceCount": "1"}}, "Invalid type for parameter ResourceConfig.InstanceCount"),
        ({"OutputDataConfig": {}}, "Missing required parameter in OutputDataConfig"),
        ({"Nonsense": 1}, 'Unknown parameter in input: "Nonsense"'),
        ({"Tags": [{"Key": "a&b", "Value": ""}]}, "which does not match"),
        ({"HyperParameters": {str(i): "" for i in range(101)}}, "number of HyperParameters is 101"),
        ({"StoppingCondition": {"MaxRuntimeInSeconds": 0}}, "MaxRuntimeInSeconds"),
    ],
)
def test_validator_refuses_what_the_service_would(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="CreateTrainingJob would be refused") as caught:
        validate("sagemaker", "CreateTrainingJob", training() | change)
    assert message in caught.value.message


@pytest.mark.parametrize("limit", [63, 32])
@pytest.mark.parametrize(
    "run", ["train-20261122-120000", "train-20261122-120000-" + "long" * 10, "train-20261122-120000-a_b.c", "x-" * 40]
)
def test_job_names_fit_and_stay_different(run: str, limit: int) -> None:
    name = job_name(run, limit)
    assert len(name) <= limit
    operation = "CreateTrainingJob" if limit == 63 else "CreateHyperParameterTuningJob"
    member = "TrainingJobName" if limit == 63 else "HyperParameterTuningJobName"
    body = training() | {member: name}
    if limit == 63:
        validate("sagemaker", operation, body)
    assert job_name(run + "2", limit) != name
    assert job_name(run, limit, "-r2").endswith("-r2")


@pytest.mark.parametrize("partition", ["amazonaws.com", "amazonaws.com.cn"])
def test_image_uris_are_taken_apart(partition: str) -> None:
    image = parse_uri(f"123456789012.dkr.ecr.cn-north-1.{partition}/team/x:1.2", 12)
    assert (image.account, image.region, image.repository, image.reference) == (
        "123456789012",
        "cn-north-1",
        "team/x",
        "1.2",
    )
    assert IMAGE.is_digest


def test_cuda_13_is_not_sent_to_volta() -> None:
    with pytest.raises(ConfigError, match="V100"):
        training(replace(SETTINGS, train_instance="ml.p3.2xlarge"))


SPECIFICATION_OF_TRIALS = "HyperParameterAlgorithmSpecification"
RESERVATION = "arn:aws:sagemaker:eu-west-1:123456789012:ml-reservation/abc"
PLAN = "arn:aws:sagemaker:eu-west-1:123456789012:training-plan/abc"


def endpoint(settings: SageMakerSettings, cuda_major: int = 13) -> dict[str, Any]:
    image = replace(IMAGE, cuda_major=cuda_major)
    return check(endpoint_requests.endpoint_config("config", "model", settings, image=image, place=PLACE))


def tuning(settings: SageMakerSettings = SETTINGS) -> dict[str, Any]:
    search = {"lr": Continuous(low=0.001, high=0.1, log=True)}
    return check(
        requests.tuning_job(
            "tune-1", TrainConfig(), search, TuneSettings(), settings, image=IMAGE, data=DATA, place=PLACE
        )
    )


def test_a_job_is_started_again_after_faults_of_sagemakers_and_uses_the_instances_of_a_plan() -> None:
    settings = replace(SETTINGS, retries=3, training_plan=PLAN)
    for body in (training(settings), tuning(settings)["TrainingJobDefinition"]):
        assert body["RetryStrategy"] == {"MaximumRetryAttempts": 3}
        assert body["ResourceConfig"]["TrainingPlanArn"] == PLAN
    assert not {"RetryStrategy", "RemoteDebugConfig"} & set(training())


def test_trials_are_started_as_trainings_are_and_need_no_entry_point() -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    members = {name: set(model.shape_for(name).members) for name in ("AlgorithmSpecification", SPECIFICATION_OF_TRIALS)}
    of_trainings, of_trials = members.values()
    assert {"ContainerEntrypoint", "ContainerArguments"} <= of_trainings - of_trials
    for body in (training(), tuning()["TrainingJobDefinition"]):
        assert set(body["AlgorithmSpecification"]) <= of_trials | {"EnableSageMakerMetricsTimeSeries"}


def test_a_person_is_let_into_containers_only_where_it_is_asked_for() -> None:
    assert training(replace(SETTINGS, remote_debug=True))["RemoteDebugConfig"] == {"EnableRemoteDebug": True}
    (variant,) = endpoint(replace(SETTINGS, ssm_access=True))["ProductionVariants"]
    assert variant["EnableSSMAccess"] is True
    (variant,) = endpoint(SETTINGS)["ProductionVariants"]
    assert not {"EnableSSMAccess", "CapacityReservationConfig"} & set(variant)


def test_an_endpoint_uses_the_instances_of_a_reservation() -> None:
    (variant,) = endpoint(replace(SETTINGS, capacity_reservation=RESERVATION))["ProductionVariants"]
    assert variant["CapacityReservationConfig"] == {
        "CapacityReservationPreference": "capacity-reservations-only",
        "MlReservationArn": RESERVATION,
    }


def test_a_search_learns_from_tuning_jobs_that_are_no_runs_here(tmp_path: Path) -> None:
    long = "tune-20261122-120000-a-name-that-is-rather-long"
    body = tuning()
    assert "WarmStartConfig" not in body
    body |= warm_start(TuneSettings(warm_start=f"tune-20261121-120000, {long}"), body, tmp_path)
    validate("sagemaker", "CreateHyperParameterTuningJob", body)
    assert body["WarmStartConfig"] == {
        "ParentHyperParameterTuningJobs": [
            {"HyperParameterTuningJobName": "tune-20261121-120000"},
            {"HyperParameterTuningJobName": job_name(long, 32)},
        ],
        "WarmStartType": "TransferLearning",
    }
    for names, message in ((",".join(map(str, range(6))), "5 earlier ones at most"), ("a,,b", "names no search")):
        with pytest.raises(ConfigError, match=message):
            warm_start(TuneSettings(warm_start=names), body, tmp_path)


@pytest.mark.parametrize(
    ("instance", "cuda_major", "driver"),
    [("g4dn", 12, "3-1"), ("g6e", 12, "3-1"), ("g5", 13, "4-1"), ("g7e", 12, "4-1"), ("p6-b200", 12, "4-1")],
)
def test_an_endpoints_driver_fits_its_image_and_knows_its_gpu(instance: str, cuda_major: int, driver: str) -> None:
    size = "48xlarge" if instance == "p6-b200" else "2xlarge"
    (variant,) = endpoint(replace(SETTINGS, serve_instance=f"ml.{instance}.{size}"), cuda_major)["ProductionVariants"]
    assert variant["InferenceAmiVersion"].endswith(f"-inference-gpu-{driver}")


def test_batch_jobs_have_no_driver_for_the_newest_gpus() -> None:
    settings = replace(SETTINGS, serve_instance="ml.g7e.2xlarge")
    image = replace(IMAGE, cuda_major=12)
    with pytest.raises(ConfigError, match="no driver for the GPUs of ml"):
        endpoint_requests.transform_job("batch", "model", settings, image=image, source="s3://b/i/", place=PLACE)


def test_other_instance_types_are_taken_in_their_order_where_the_first_is_not_to_be_had() -> None:
    settings = replace(SETTINGS, train_fallbacks="ml.g6.xlarge, ml.g4dn.xlarge", train_instances=2)
    types = ("ml.g5.xlarge", "ml.g6.xlarge", "ml.g4dn.xlarge")
    assert training(settings)["ResourceConfig"] == {
        "InstancePreferences": [{"InstanceType": each, "InstanceCount": 2} for each in types],
        "VolumeSizeInGB": 50,
    }
    definition = tuning(settings)["TrainingJobDefinition"]
    assert "ResourceConfig" not in definition  # trials have no InstancePreferences
    assert definition["HyperParameterTuningResourceConfig"] == {
        "AllocationStrategy": "Prioritized",
        "InstanceConfigs": [{"InstanceType": each, "InstanceCount": 2, "VolumeSizeInGB": 50} for each in types],
    }
    (variant,) = endpoint(replace(SETTINGS, serve_instance="ml.g6.xlarge", serve_fallbacks="ml.g7e.2xlarge"), 12)[
        "ProductionVariants"
    ]
    assert "InstanceType" not in variant
    assert variant["InstancePools"] == [
        {"InstanceType": "ml.g6.xlarge", "Priority": 1},
        {"InstanceType": "ml.g7e.2xlarge", "Priority": 2},
    ]
    assert variant["InferenceAmiVersion"].endswith("-4-1")  # the driver that all of them have
    dear = cost.training(settings)
    assert dear.most == pytest.approx(1.408 * 2 * 4)
    assert "or else ml.g6.xlarge, ml.g4dn.xlarge; the dearest counts" in dear.lines[0]
    assert cost.training(replace(SETTINGS, train_fallbacks="ml.p5.48xlarge")).most is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_fallbacks": "ml.g6.xlarge", "spot": True}, "spot instances have no train_fallbacks"),
        ({"train_fallbacks": "ml.g6.xlarge", "training_plan": PLAN}, "a training plan has no train_fallbacks"),
        ({"serve_fallbacks": "ml.c6i.xlarge", "capacity_reservation": RESERVATION}, "reservation has no serve_fall"),
        ({"serve_fallbacks": "ml.c6i.xlarge", "variant": "serverless"}, "cannot have serve_fallbacks"),
        ({"serve_fallbacks": "ml.g6.xlarge"}, "all GPUs or none"),
        ({"serve_fallbacks": "ml.c8g.xlarge"}, "all arm64 or none"),
        ({"train_fallbacks": "ml.g5.xlarge"}, "named twice"),
        ({"train_fallbacks": ",".join(f"ml.g6.{size}xlarge" for size in (1, 2, 4, 8, 12))}, "at most 4"),
    ],
)
def test_fallbacks_that_could_not_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SETTINGS, **changes)


def test_managed_mlflow_is_told_of_training_jobs_where_it_is_asked_for() -> None:
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/team"
    assert training(replace(SETTINGS, mlflow=arn))["MlflowConfig"] == {
        "MlflowResourceArn": arn,
        "MlflowExperimentName": "image-classifier",
        "MlflowRunName": PLACE.run,
    }
    assert "MlflowConfig" not in training()
    assert "MlflowConfig" not in tuning(replace(SETTINGS, mlflow=arn))["TrainingJobDefinition"]  # trials cannot have it
