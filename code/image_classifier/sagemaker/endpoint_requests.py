"""Request bodies of endpoints and batch jobs: as `requests`, pure functions that call nothing."""

from __future__ import annotations

from image_classifier.contract.endpoint import ENGINE_VARIABLE, PRECISION_VARIABLE, PRECISIONS, WORKERS_VARIABLE
from image_classifier.contract.errors import ConfigError
from image_classifier.sagemaker.aws_settings import (
    AUTO,
    NONE,
    SageMakerSettings,
    has_local_storage,
    is_gpu,
    needs_newest_driver,
)
from image_classifier.sagemaker.images import ARM, Image
from image_classifier.sagemaker.requests import ApiRequest, Body, Place, only, tags

VARIANT = "main"
STARTUP_TIMEOUT_S = 600  # the image is pulled, the model downloaded, compiled for OpenVINO and tested
CANARY_PERCENT = 10
ALARM_PERCENT = 2.0  # of an update's first tenth of the traffic that is a fifth
ALARM_FLOOR = 3  # answers in a minute: one that fails is no verdict on a model
SCALE_IN_COOLDOWN_S = 300
SCALE_OUT_COOLDOWN_S = 60
MAX_PAYLOAD_MB = 6
# What the image's CUDA major needs of the endpoint's driver (botocore's documentation of InferenceAmiVersion).
INFERENCE_AMI = {13: "al2023-ami-sagemaker-inference-gpu-4-1", 12: "al2-ami-sagemaker-inference-gpu-3-1"}
# Batch jobs have older drivers only: 535 runs CUDA 12 images, none runs CUDA 13 (TransformAmiVersion).
TRANSFORM_AMI = {12: "al2-ami-sagemaker-batch-gpu-535"}


def model(
    name: str,
    settings: SageMakerSettings,
    *,
    image: Image,
    data_url: str,
    place: Place,
    precision: str = PRECISIONS[0],
    package: str = "",
) -> ApiRequest:
    """CreateModel.

    Args:
        data_url: `s3://.../model.tar.gz`.
        package: the ARN of a version in the model registry, which names image and archive itself.
        precision: the number format the endpoint computes in, of PRECISIONS.
    """
    container: Body = {"ModelPackageName": package} if package else {"Image": image.uri, "ModelDataUrl": data_url}
    environment = {} if precision == PRECISIONS[0] else {PRECISION_VARIABLE: precision}
    if settings.variant == "serverless":
        environment |= {ENGINE_VARIABLE: "openvino", WORKERS_VARIABLE: "1"}
    if environment:
        container["Environment"] = environment
    body: Body = {
        "ModelName": name,
        "PrimaryContainer": container,
        "ExecutionRoleArn": settings.role,
        "Tags": tags(place, settings),
        "EnableNetworkIsolation": settings.network_isolation,
    }
    if vpc := settings.vpc():
        body["VpcConfig"] = vpc
    return ApiRequest(service="sagemaker", operation="create_model", body=body)


def endpoint_config(
    name: str, model_name: str, settings: SageMakerSettings, *, image: Image, place: Place
) -> ApiRequest:
    """CreateEndpointConfig for an instance, serverless or async endpoint."""
    body: Body = {
        "EndpointConfigName": name,
        "ProductionVariants": [_variant(model_name, settings, image)],
        "Tags": tags(place, settings),
    }
    if settings.capture_percent:
        body["DataCaptureConfig"] = _data_capture(settings, place)
    if settings.variant == "async":
        body["AsyncInferenceConfig"] = {
            "OutputConfig": {
                "S3OutputPath": f"{place.answers}/good",
                "S3FailurePath": f"{place.answers}/failed",
                **only(KmsKeyId=settings.kms_key),
            }
        }
    if not any(has_local_storage(instance) for instance in settings.serve_types):
        body |= only(KmsKeyId=settings.kms_key)
    return ApiRequest(service="sagemaker", operation="create_endpoint_config", body=body)


def create_endpoint(name: str, config_name: str, settings: SageMakerSettings, *, place: Place) -> ApiRequest:
    """CreateEndpoint."""
    body = {"EndpointName": name, "EndpointConfigName": config_name, "Tags": tags(place, settings)}
    return ApiRequest(service="sagemaker", operation="create_endpoint", body=body)


def update_endpoint(name: str, config_name: str, settings: SageMakerSettings) -> ApiRequest:
    """UpdateEndpoint: blue/green, a tenth of the traffic first, rolled back when an alarm goes off."""
    body: Body = {"EndpointName": name, "EndpointConfigName": config_name}
    if settings.variant == "instance":
        routing: Body = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": settings.bake_s}
        if settings.serve_instances > 1:
            size = {"Type": "CAPACITY_PERCENT", "Value": CANARY_PERCENT}
            routing = {"Type": "CANARY", "WaitIntervalInSeconds": settings.bake_s, "CanarySize": size}
        body["DeploymentConfig"] = {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": routing,
                "TerminationWaitInSeconds": settings.bake_s,
                "MaximumExecutionTimeoutInSeconds": 2 * settings.bake_s + 3_600,
            }
        }
        if names := alarm_names(name, settings):
            alarms = [{"AlarmName": alarm} for alarm in names]
            body["DeploymentConfig"]["AutoRollbackConfiguration"] = {"Alarms": alarms}
    return ApiRequest(service="sagemaker", operation="update_endpoint", body=body)


def alarm_names(endpoint: str, settings: SageMakerSettings) -> list[str]:
    """The alarms that watch an update."""
    if settings.alarms == NONE:
        return []
    if settings.alarms == AUTO:
        return [f"{endpoint}-5xx"]
    return [name.strip() for name in settings.alarms.split(",") if name.strip()]


def alarm(endpoint: str, settings: SageMakerSettings, *, place: Place) -> ApiRequest:
    """PutMetricAlarm: ALARM_PERCENT of the answers within a minute have a 5xx status, and no fewer than ALARM_FLOOR.

    What a client did wrong is answered with 4xx and does not count.
    """
    body = {
        "AlarmName": f"{endpoint}-5xx",
        "AlarmDescription": f"Rolls updates of the endpoint {endpoint} back",
        "Metrics": [
            _minute_sum("errors", "Invocation5XXErrors", endpoint),
            _minute_sum("invocations", "Invocations", endpoint),
            {
                "Id": "share",
                "Label": "answers with a 5xx status, in percent",
                "Expression": f"IF(errors >= {ALARM_FLOOR}, 100 * errors / invocations, 0)",
                "ReturnData": True,
            },
        ],
        "EvaluationPeriods": 1,
        "Threshold": ALARM_PERCENT,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
        "Tags": tags(place, settings),
    }
    return ApiRequest(service="cloudwatch", operation="put_metric_alarm", body=body)


def _minute_sum(name: str, metric: str, endpoint: str) -> Body:
    dimensions = [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": VARIANT}]
    described = {"Namespace": "AWS/SageMaker", "MetricName": metric, "Dimensions": dimensions}
    return {"Id": name, "MetricStat": {"Metric": described, "Period": 60, "Stat": "Sum"}, "ReturnData": False}


def scaling(endpoint: str, settings: SageMakerSettings, *, place: Place) -> list[ApiRequest]:
    """RegisterScalableTarget and PutScalingPolicy: instances follow the load."""
    target: Body = scalable_target(endpoint)
    register = target | {
        "MinCapacity": settings.min_instances,
        "MaxCapacity": settings.max_instances,
        "Tags": {item["Key"]: item["Value"] for item in tags(place, settings)},
    }
    tracking: Body = {
        "TargetValue": settings.scale_at,
        "ScaleInCooldown": SCALE_IN_COOLDOWN_S,
        "ScaleOutCooldown": SCALE_OUT_COOLDOWN_S,
    }
    if settings.variant == "async":
        tracking["CustomizedMetricSpecification"] = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": "AWS/SageMaker",
            "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
            "Statistic": "Average",
        }
    else:
        metric = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        tracking["PredefinedMetricSpecification"] = metric
    policy = target | {
        "PolicyName": f"{endpoint}-load",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
    }
    requests = [
        ApiRequest(service="application-autoscaling", operation="register_scalable_target", body=register),
        ApiRequest(service="application-autoscaling", operation="put_scaling_policy", body=policy),
    ]
    if settings.variant == "async" and settings.min_instances == 0:
        requests += _wake_up(endpoint, target)
    return requests


def scalable_target(endpoint: str) -> Body:
    """What names an endpoint's number of instances to Application Auto Scaling."""
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }


def transform_job(
    name: str, model_name: str, settings: SageMakerSettings, *, image: Image, source: str, place: Place
) -> ApiRequest:
    """CreateTransformJob: every object below `source` is one image, and gets an answer NAME.out."""
    resources: Body = {"InstanceType": settings.serve_instance, "InstanceCount": settings.serve_instances}
    if is_gpu(settings.serve_instance):
        if needs_newest_driver(settings.serve_instance):
            raise ConfigError(
                f"batch jobs have no driver for the GPUs of {settings.serve_instance}",
                "set serve_instance to an older GPU such as ml.g6.xlarge, or to a CPU type such as ml.c7i.xlarge",
            )
        if image.cuda_major not in TRANSFORM_AMI:
            raise ConfigError(
                f"batch jobs have no GPU driver for CUDA {image.cuda_major} images",
                "set serve_instance to a CPU type such as ml.c7i.xlarge, or build the CUDA 12 variant",
            )
        resources["TransformAmiVersion"] = TRANSFORM_AMI[image.cuda_major]
    elif not has_local_storage(settings.serve_instance):
        resources |= only(VolumeKmsKeyId=settings.kms_key)
    body: Body = {
        "TransformJobName": name,
        "ModelName": model_name,
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": MAX_PAYLOAD_MB,
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
            "ContentType": "application/x-image",
            "CompressionType": "None",
            "SplitType": "None",
        },
        "TransformOutput": {
            "S3OutputPath": place.answers,
            "Accept": "application/json",
            "AssembleWith": "None",
            **only(KmsKeyId=settings.kms_key),
        },
        "TransformResources": resources,
        "Tags": tags(place, settings),
    }
    return ApiRequest(service="sagemaker", operation="create_transform_job", body=body)


def _variant(model_name: str, settings: SageMakerSettings, image: Image) -> Body:
    if image.processor and (image.processor == ARM) != settings.serves_on_arm:
        on = "a serverless endpoint" if settings.variant == "serverless" else settings.serve_instance
        raise ConfigError(
            f"the image {image.repository} is for {image.processor} processors, {on} has others",
            "choose another serve_instance, or serve a model.tar.gz: its image is chosen by the instance",
        )
    variant: Body = {"VariantName": VARIANT, "ModelName": model_name}
    if settings.variant == "serverless":
        return variant | {
            "ServerlessConfig": {
                "MemorySizeInMB": settings.serverless_memory_mb,
                "MaxConcurrency": settings.serverless_concurrency,
            }
        }
    variant |= {
        "InstanceType": settings.serve_instance,
        "InitialInstanceCount": settings.serve_instances,
        "InitialVariantWeight": 1.0,
        "ContainerStartupHealthCheckTimeoutInSeconds": STARTUP_TIMEOUT_S,
    }
    if settings.serve_fallbacks != NONE:
        del variant["InstanceType"]
        pools = [{"InstanceType": name, "Priority": rank} for rank, name in enumerate(settings.serve_types, 1)]
        variant["InstancePools"] = pools
    if settings.ssm_access:
        variant["EnableSSMAccess"] = True
    if settings.capacity_reservation != NONE:
        variant["CapacityReservationConfig"] = {
            "CapacityReservationPreference": "capacity-reservations-only",
            "MlReservationArn": settings.capacity_reservation,
        }
    if is_gpu(settings.serve_instance):
        if image.cuda_major not in INFERENCE_AMI:
            raise ConfigError(f"endpoints have no driver for CUDA {image.cuda_major} images", "build CUDA 13 or 12")
        if any(instance.startswith("ml.p3") for instance in settings.serve_types) and image.cuda_major >= 13:
            raise ConfigError("CUDA 13 does not run on the V100 of ml.p3", "choose ml.g4dn or newer, or CUDA 12")
        newest = any(needs_newest_driver(instance) for instance in settings.serve_types)
        variant["InferenceAmiVersion"] = INFERENCE_AMI[max(INFERENCE_AMI) if newest else image.cuda_major]
    return variant


def _data_capture(settings: SageMakerSettings, place: Place) -> Body:
    return {
        "EnableCapture": True,
        "InitialSamplingPercentage": settings.capture_percent,
        "DestinationS3Uri": place.captured,
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"], "CsvContentTypes": ["text/csv"]},
        **only(KmsKeyId=settings.kms_key),
    }


def _wake_up(endpoint: str, target: Body) -> list[ApiRequest]:
    """From no instance to one: with none running there is no backlog per instance for the other policy to see."""
    steps: Body = {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Average",
        "Cooldown": SCALE_IN_COOLDOWN_S,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
    }
    policy = target | {
        "PolicyName": f"{endpoint}-wake",
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": steps,
    }
    return [ApiRequest(service="application-autoscaling", operation="put_scaling_policy", body=policy)]


def wake_alarm(endpoint: str, policy_arn: str, settings: SageMakerSettings, *, place: Place) -> ApiRequest:
    """PutMetricAlarm that sets off the policy of `_wake_up`, whose ARN is known only once it exists."""
    body = {
        "AlarmName": f"{endpoint}-wake",
        "AlarmDescription": f"Starts an instance of the endpoint {endpoint} when requests wait and none runs",
        "Namespace": "AWS/SageMaker",
        "MetricName": "HasBacklogWithoutCapacity",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
        "Statistic": "Average",
        "Period": 60,
        "EvaluationPeriods": 2,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [policy_arn],
        "Tags": tags(place, settings),
    }
    return ApiRequest(service="cloudwatch", operation="put_metric_alarm", body=body)
