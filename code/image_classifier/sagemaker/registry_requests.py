"""Request bodies of the model registry: as `requests`, pure functions that call nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from image_classifier.contract.image_formats import MEDIA_TYPES
from image_classifier.sagemaker.aws_settings import SageMakerSettings
from image_classifier.sagemaker.images import Image
from image_classifier.sagemaker.requests import ID_TAG, ApiRequest, Body, Place, tags

APPROVED, PENDING, REJECTED = "Approved", "PendingManualApproval", "Rejected"
APPROVALS = (PENDING, APPROVED, REJECTED)
CUDA_MAJOR, PROCESSOR = "cuda_major", "processor"
ANSWERS = ("application/json", "text/csv", "application/jsonlines")
MAX_DESCRIPTION = 1024  # characters, EntityDescription
MAX_FACT = 256  # characters, CustomerMetadataValue


def model_package_group(settings: SageMakerSettings, *, place: Place) -> ApiRequest:
    """CreateModelPackageGroup. Its tags are also those of its versions, which can have none of their own."""
    body = {
        "ModelPackageGroupName": settings.model_group,
        "ModelPackageGroupDescription": "Image classifiers: ResNet50, labels and preprocessing in one archive",
        "Tags": tags(place, settings),
    }
    return ApiRequest(service="sagemaker", operation="create_model_package_group", body=body)


def model_package(
    settings: SageMakerSettings,
    *,
    image: Image,
    model_url: str,
    quality_url: str,
    doubt: str,
    facts: Mapping[str, str],
    commit: str,
    status: str,
    place: Place,
) -> ApiRequest:
    """CreateModelPackage: the next version in the group.

    Args:
        model_url, quality_url: the archive and its metrics in S3.
        doubt: what speaks against serving it; empty for nothing.
        facts: what is noted of it, name -> text.
        commit: of the code that trained it; empty where that is not known.
        status: of APPROVALS.
    """
    noted = {**facts, CUDA_MAJOR: str(image.cuda_major), ID_TAG.rpartition(":")[2]: place.id}
    if image.processor:
        noted[PROCESSOR] = image.processor
    body: Body = {
        "ModelPackageGroupName": settings.model_group,
        "ModelPackageDescription": (doubt or "Its report names nothing that speaks against it")[:MAX_DESCRIPTION],
        "InferenceSpecification": {
            "Containers": [{"Image": image.uri, "ModelDataUrl": model_url}],
            "SupportedRealtimeInferenceInstanceTypes": [settings.serve_instance],
            "SupportedContentTypes": sorted({*MEDIA_TYPES, "application/x-image"}),
            "SupportedResponseMIMETypes": list(ANSWERS),
        },
        "ModelApprovalStatus": status,
        "ModelMetrics": {
            "ModelQuality": {"Statistics": {"ContentType": "application/json", "S3Uri": quality_url}},
        },
        "CustomerMetadataProperties": {name: text[:MAX_FACT] for name, text in noted.items()},
        "Domain": "COMPUTER_VISION",
        "Task": "IMAGE_CLASSIFICATION",
        "ClientToken": place.id,  # a request that is sent again makes no second version
    }
    if commit:
        body["MetadataProperties"] = {"CommitId": commit, "GeneratedBy": facts.get("job", place.run)}
    return ApiRequest(service="sagemaker", operation="create_model_package", body=body)


def quality(metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """A model's metrics as SageMaker Model Monitor writes them, so that Studio draws them: the test's, or where there
    was no test the validation's."""
    finite = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    split = "test" if any(name.startswith("test:") for name in finite) else "validation"
    names = {name: name.removeprefix(f"{split}:") for name in finite if name.startswith(f"{split}:")}
    return {
        "multiclass_classification_metrics": {
            short: {"value": finite[name], "standard_deviation": "NaN"} for name, short in names.items()
        },
        "measured_on": split,
    }
