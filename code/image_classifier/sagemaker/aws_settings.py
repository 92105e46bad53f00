"""`[sagemaker]`: every setting of the SageMaker target. Words stand for what is worked out: `auto`, and `none`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from image_classifier.contract.config import check, param, parameters_of
from image_classifier.contract.errors import ConfigError

AUTO = "auto"
NONE = "none"
MAX_TYPES = 5  # InstancePreferences' and InstancePools' limit
MAX_WARM_POOL_S = 21_600  # CreateTrainingJob's limit on KeepAlivePeriodInSeconds
# Graviton: a g after the number (c8g, m6gd); and the Grace processors of p6e.
_ARM_FAMILY = re.compile(r"ml\.([a-z]+\d+g[a-z]*|p6e-gb\d+)\.")
_GPU_FAMILY = re.compile(r"ml\.(g|p)\d")
_NEWER_GPU_FAMILY = re.compile(r"ml\.(g7|g7e|p6-b\d+)\.")  # Blackwell: RTX PRO 6000, B200, B300
# Families whose instances carry NVMe disks, which are always encrypted by their own key: the API refuses another one.
_LOCAL_STORAGE = re.compile(r"ml\.(g4dn|g5|g6|g6e|p3dn|p4d|p4de|p5|p5e|p5en|p6-b\d+|g7e|[a-z]+\d+[a-z]*d|trn\d)\b")


@dataclass(frozen=True, kw_only=True)
class SageMakerSettings:
    """Where, as whom, on what and how jobs and endpoints run. Raises ConfigError on values that exclude each other."""

    profile: str = param(
        AUTO, "profile of the AWS configuration, auto for the environment's own credentials", section="Account"
    )
    region: str = param(AUTO, "region, auto for the one of the profile or of AWS_REGION")
    role: str = param(NONE, "ARN of the role that jobs and endpoints run as, with its path: arn:aws:iam::...:role/...")
    bucket: str = param(AUTO, "bucket for data and models, auto for sagemaker-REGION-ACCOUNT, made when missing")
    prefix: str = param("image-classifier", "folder in the bucket")
    train_image: str = param(AUTO, "URI of the training image, auto for the one that build_and_push.sh pushed last")
    serve_image: str = param(AUTO, "URI of the serving image, auto for the one that build_and_push.sh pushed last")
    cuda_major: int = param(13, "CUDA major of images whose URI is given here", low=11, high=99)

    train_instance: str = param("ml.g5.xlarge", "instance type of training jobs", section="Training jobs")
    train_fallbacks: str = param(
        NONE, "instance types to take where train_instance is not to be had, with commas between them, 4 at most"
    )
    train_instances: int = param(1, "instances a training job uses together", low=1, high=100)
    volume_gb: int = param(50, "disk of a training instance that has none of its own, in GB", low=1, high=16_384)
    input_mode: str = param("File", "copy the images before training, or stream them", choices=("File", "FastFile"))
    max_run_s: int = param(14_400, "seconds after which a training job is ended", low=60, high=2_419_200)
    spot: bool = param(False, "train on spare capacity: cheaper, may be interrupted, resumes from its checkpoints")
    max_wait_s: int = param(
        0, "seconds a spot job may wait and run in all, 0 for twice max_run_s", low=0, high=4_838_400
    )
    warm_pool_s: int = param(
        0, "seconds to keep (and pay for) the instances for the next job", low=0, high=MAX_WARM_POOL_S
    )
    retries: int = param(
        0, "times a training job or trial is started again after a fault of SageMaker's own", low=0, high=30
    )
    training_plan: str = param(NONE, "ARN of the training plan whose reserved instances are used")
    mlflow: str = param(NONE, "ARN of the managed MLflow that SageMaker tells of training jobs")
    remote_debug: bool = param(False, "let a person into a training container, by Systems Manager's sessions")
    managed_debugger: bool = param(False, "add AWS's own Debugger rules to a training, for accounts that have them")

    network_isolation: bool = param(
        False, "no network inside the containers; weights must be in the image or a file", section="Network, keys, tags"
    )
    encrypt_traffic: bool = param(False, "encrypt what the instances of one job send each other")
    subnets: str = param(NONE, "VPC subnets, with commas between them")
    security_groups: str = param(NONE, "VPC security groups, with commas between them")
    kms_key: str = param(NONE, "KMS key (id or ARN) for the bucket's objects and the instances' disks")
    tags: str = param(NONE, "tags of everything that is made: key=value, with commas between them")

    early_stopping: bool = param(True, "end trials that fall behind (Hyperband always does)", section="Searches")

    model_group: str = param(
        "image-classifier", "group of the model registry that `register` adds to", section="Model registry"
    )

    endpoint: str = param("image-classifier", "name of the endpoint; serving again updates it", section="Endpoint")
    variant: str = param("instance", "kind of endpoint", choices=("instance", "serverless", "async"))
    serve_instance: str = param("ml.c7i.xlarge", "instance type of the endpoint and of batch jobs")
    serve_fallbacks: str = param(
        NONE, "instance types to take where serve_instance is not to be had, with commas between them, 4 at most"
    )
    serve_instances: int = param(1, "instances to start with", low=1, high=100)
    min_instances: int = param(1, "fewest instances when scaling; 0 for async only", low=0, high=100)
    max_instances: int = param(
        1, "most instances; above min_instances the endpoint scales with its load", low=1, high=100
    )
    scale_at: float = param(
        600.0, "requests a minute and instance to scale at (async: waiting ones)", low=0.1, high=1e6
    )
    serverless_memory_mb: int = param(4096, "memory of a serverless endpoint", low=1024, high=6144)
    serverless_concurrency: int = param(5, "most requests a serverless endpoint answers at a time", low=1, high=200)
    ssm_access: bool = param(False, "let a person into the endpoint's containers, by Systems Manager's sessions")
    capacity_reservation: str = param(NONE, "ARN of the ML capacity reservation whose instances the endpoint uses")
    capture_percent: int = param(0, "share of requests and answers written to the bucket", low=0, high=100)
    alarms: str = param(AUTO, "CloudWatch alarms that roll an update back, auto for one on 5xx answers, none for none")
    bake_s: int = param(300, "seconds an update is watched with a tenth of the traffic", low=0, high=3_600)

    def __post_init__(self) -> None:
        for known in parameters_of(SageMakerSettings):
            check(known, getattr(self, known.name))
        if self.spot and self.warm_pool_s:
            raise ConfigError("spot instances cannot be kept warm", "set spot = false or warm_pool_s = 0")
        if self.max_wait_s and not self.spot:
            raise ConfigError("max_wait_s is for spot jobs", "set spot = true, or leave max_wait_s at 0")
        if self.max_wait_s and self.max_wait_s < self.max_run_s:
            raise ConfigError(f"max_wait_s ({self.max_wait_s}) includes the run: it cannot be below max_run_s")
        if (self.subnets == NONE) != (self.security_groups == NONE):
            raise ConfigError("a VPC needs both subnets and security_groups", "name both, or none of them")
        if self.min_instances == 0 and self.variant != "async":
            raise ConfigError("only an async endpoint can go down to no instance", 'set variant = "async"')
        if not self.min_instances <= self.serve_instances <= max(self.max_instances, self.serve_instances):
            raise ConfigError(f"serve_instances ({self.serve_instances}) is below min_instances ({self.min_instances})")
        if self.role.startswith("arn:") is False and self.role != NONE:
            raise ConfigError(f"role is {self.role!r}, not an ARN", "copy it whole: role names lose their path")
        if self.spot and self.training_plan != NONE:
            raise ConfigError("a training plan's instances are no spot instances", "set spot = false")
        self._check_instances()
        self._check_variant()

    def _check_instances(self) -> None:
        for setting, instances in (("train", self.train_types), ("serve", self.serve_types)):
            for number, instance in enumerate(instances):
                if is_arm(instance) and (setting == "train" or is_gpu(instance)):
                    raise ConfigError(
                        f"{setting}_{'fallbacks' if number else 'instance'} is {instance}, whose processor is arm64; "
                        "the images that train or use GPUs are for x86-64",
                        "choose one without a g after its number, such as ml.g5.xlarge",
                    )
            if len(instances) > MAX_TYPES:
                raise ConfigError(f"{setting}_fallbacks names {len(instances) - 1} types, at most {MAX_TYPES - 1}")
            if len(set(instances)) < len(instances):
                raise ConfigError(f"an instance type is named twice among {', '.join(instances)}")
        if len({is_gpu(instance) for instance in self.serve_types}) > 1:
            raise ConfigError("an endpoint's instances have all GPUs or none: its image is chosen by that")
        if len({is_arm(instance) for instance in self.serve_types}) > 1:
            raise ConfigError("an endpoint's instances are all arm64 or none: an image is built for one processor")
        for excluded, fallbacks, name in (
            (self.spot, self.train_fallbacks, "spot instances have no train_fallbacks"),
            (self.training_plan != NONE, self.train_fallbacks, "a training plan has no train_fallbacks"),
            (self.capacity_reservation != NONE, self.serve_fallbacks, "a capacity reservation has no serve_fallbacks"),
        ):
            if excluded and fallbacks != NONE:
                raise ConfigError(name, "name one instance type, or leave the other setting out")

    def _check_variant(self) -> None:
        if self.variant != "serverless":
            return
        if self.serverless_memory_mb % 1024:
            raise ConfigError(f"serverless_memory_mb must be a multiple of 1024, not {self.serverless_memory_mb}")
        for excluded, name in (
            (self.capture_percent > 0, "data capture (capture_percent)"),
            (self.network_isolation, "network_isolation"),
            (self.subnets != NONE, "a VPC (subnets)"),
            (self.kms_key != NONE, "kms_key"),
            (self.max_instances > 1, "max_instances"),
            (self.ssm_access, "ssm_access"),
            (self.capacity_reservation != NONE, "a capacity_reservation"),
            (self.serve_fallbacks != NONE, "serve_fallbacks"),
        ):
            if excluded:
                raise ConfigError(f"a serverless endpoint cannot have {name}", 'set variant = "instance"')

    @property
    def train_types(self) -> tuple[str, ...]:
        """Instance types of a training job, the one to take first."""
        return (self.train_instance, *_items(self.train_fallbacks))

    @property
    def serve_types(self) -> tuple[str, ...]:
        """Instance types of an endpoint, the one to take first."""
        return (self.serve_instance, *_items(self.serve_fallbacks))

    @property
    def scales(self) -> bool:
        """Whether the endpoint changes its number of instances by itself."""
        return self.variant != "serverless" and self.max_instances > self.min_instances

    @property
    def serves_on_gpu(self) -> bool:
        """Whether the endpoint's machine has a GPU; a serverless one never has."""
        return self.variant != "serverless" and is_gpu(self.serve_instance)

    @property
    def serves_on_arm(self) -> bool:
        """Whether the endpoint's processor is arm64; a serverless one's never is."""
        return self.variant != "serverless" and is_arm(self.serve_instance)

    def parsed_tags(self) -> dict[str, str]:
        """`tags` as a mapping. Raises ConfigError on anything but key=value pairs."""
        pairs = [item.partition("=") for item in _items(self.tags)]
        if not all(key.strip() and sign for key, sign, _ in pairs):
            raise ConfigError(f"tags are key=value pairs, not {self.tags!r}", 'example: tags = "team=vision,cost=42"')
        return {key.strip(): value.strip() for key, _, value in pairs}

    def vpc(self) -> dict[str, list[str]] | None:
        """`VpcConfig`, None outside a VPC."""
        if self.subnets == NONE:
            return None
        return {"SecurityGroupIds": _items(self.security_groups), "Subnets": _items(self.subnets)}


def is_gpu(instance: str) -> bool:
    """Whether an instance type has NVIDIA GPUs: `ml.g5.xlarge`."""
    return _GPU_FAMILY.match(instance) is not None


def is_arm(instance: str) -> bool:
    """Whether an instance type's processor is arm64, for which there is an image that serves without a GPU."""
    return _ARM_FAMILY.match(instance) is not None


def needs_newest_driver(instance: str) -> bool:
    """Whether an instance type's GPUs are newer than the drivers for CUDA 12 images (550; 535 in batch jobs)."""
    return _NEWER_GPU_FAMILY.match(instance) is not None


def has_local_storage(instance: str) -> bool:
    """Whether an instance type brings disks of its own, which take no KMS key."""
    return _LOCAL_STORAGE.match(instance) is not None


def _items(text: str) -> list[str]:
    return [] if text == NONE else [item.strip() for item in text.split(",") if item.strip()]
