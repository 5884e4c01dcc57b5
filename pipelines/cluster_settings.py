"""The recipe's section `cluster`: storage, secrets, node labels and limits of the cluster that runs it."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from chatmetrics.components.settings import Settings
from chatmetrics.pipelines.kubernetes_values import Bytes, Cpu, LabelKey, ObjectName, QueueName, SecretKey

MOST_HOURS = 8760  # a year

POOLED_STEPS = ("preprocess", "distill", "merge", "convert", "evaluate")


def _pooled_step(step: str) -> str:
    if step not in POOLED_STEPS:
        hint = "its pool is --gpu-pool" if step == "train" else f"known are {', '.join(POOLED_STEPS)}"
        raise ValueError(f"no step whose pool can be set here; {hint}")
    return step


def _pool_name(name: object) -> object:
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name  # 4090 without quotes


class StepRequests(Settings):
    """What a step's pod requests, as Kubernetes quantities; an empty value leaves the estimate."""

    cpu: Cpu = Field("", description="CPU cores, for example 8, 0.5 or 500m")
    memory: Bytes = Field("", description="Memory, for example 64Gi or 1.5Gi; it is the pod's limit too")
    disk: Bytes = Field("", description="Disk for temporary files, for example 50Gi; it is the pod's limit too")


class ClusterSettings(Settings):
    """How runs use the cluster. The defaults fit a standard installation of Kubeflow Pipelines with its own MinIO."""

    model_config = ConfigDict(allow_inf_nan=False)

    store: str = Field(
        "s3://mlpipeline/chatmetrics", pattern=r"^s3://[^/]+", description="s3:// prefix of models, inputs and runs"
    )
    s3_endpoint: str = Field(
        "http://minio-service.kubeflow:9000",
        pattern=r"^(https?://[^/@\s]+/?)?$",
        description="URL of the S3 service as pods reach it; empty: Amazon S3",
    )
    s3_region: str = Field("us-east-1", description="Region of the bucket")
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Where requests to S3 name the bucket: path, virtual (in the host), or auto: in the host at Amazon "
        "only",
    )
    s3_ca_config_map: ObjectName = Field(
        "",
        description="ConfigMap with the CA bundle of the S3 service under `ca.crt`; empty: the usual authorities",
    )
    s3_secret: ObjectName = Field(
        "mlpipeline-minio-artifact",
        description="Kubernetes secret with the S3 credentials; empty: the service account has its own",
    )
    s3_access_key: SecretKey = Field("accesskey", description="Key of the access key in `s3_secret`")
    s3_secret_key: SecretKey = Field("secretkey", description="Key of the secret key in `s3_secret`")
    hub_secret: ObjectName = Field(
        "",
        description="Kubernetes secret with a Hugging Face token under `token`, for the steps that read the base "
        "model; empty: none",
    )
    teacher_secret: ObjectName = Field(
        "",
        description="Kubernetes secret with the teacher's API key, for distill only; empty: the teacher needs none",
    )
    teacher_key: SecretKey = Field("key", description="Key of the API key in `teacher_secret`")
    database_secret: ObjectName = Field(
        "",
        description="Kubernetes secret with the password of the account in the address preprocess.databases, for the "
        "steps that read databases; empty: the account needs none",
    )
    database_key: SecretKey = Field("password", description="Key of the password in `database_secret`")
    signing_secret: ObjectName = Field(
        "",
        description="Kubernetes secret with the key that signs a published model's manifest, for the gate only; empty: "
        "it is not signed",
    )
    signing_key: SecretKey = Field("key", description="Key of the private key in `signing_secret`")
    image_pull_secret: ObjectName = Field("", description="Kubernetes secret for pulling images; empty: none")
    service_account: ObjectName = Field("", description="Service account of the steps' pods; empty: KFP's default")
    node_label: LabelKey = Field("accelerator", min_length=1, description="Node label whose value names a node's pool")
    pools: dict[Annotated[str, AfterValidator(_pooled_step)], Annotated[str, BeforeValidator(_pool_name)]] = Field(
        {},
        description="GPU pools whose nodes other steps than train run on, by step: {evaluate: '4090'}. A step without "
        "one runs on any node without taints",
    )
    scales_from_zero: bool = Field(False, description="Whether a pool may have no nodes until a pod requests one")
    queue: QueueName = Field("", description="Local queue of Kueue; empty: pods are scheduled without Kueue")
    data_claim: ObjectName = Field(
        "",
        description="PersistentVolumeClaim mounted at /data in preprocess, distill, evaluate and, with "
        "`train.early_stopping: accuracy`, train; empty: none",
    )
    weights_claim: ObjectName = Field(
        "", description="PersistentVolumeClaim mounted at /weights in the steps that read the base model; empty: none"
    )
    scratch_class: ObjectName = Field(
        "",
        description="Storage class of a volume for the temporary files of each pod of train, merge, convert and "
        "evaluate, sized from the base model; its volumes must be writable by any user. Empty: the node's disk",
    )
    base_parameters: float = Field(
        0.0,
        ge=0,
        le=10_000,
        description="Billions of parameters of the base model, for memory requests; 0: from its name, as in 7B",
    )
    requests: dict[str, StepRequests] = Field(
        {},
        description="CPU, memory and disk of a step, not estimated: {merge: {cpu: 8, memory: 64Gi, disk: 50Gi}}",
    )
    retries: int = Field(5, ge=0, le=100, description="Times that a killed or evicted train pod is restarted")
    train_hours: float = Field(72, gt=0, le=MOST_HOURS, description="Most hours of an attempt of the train step")
    distill_hours: float = Field(72, gt=0, le=MOST_HOURS, description="Most hours of an attempt of the distill step")
    evaluate_hours: float = Field(72, gt=0, le=MOST_HOURS, description="Most hours of an attempt of the evaluate step")
    step_hours: float = Field(6, gt=0, le=MOST_HOURS, description="Most hours of an attempt of any other step")
    pending_minutes: float = Field(
        30,
        gt=0,
        description="Minutes that a pod may wait for a node, and then for its image and volumes, before the run fails; "
        "time in a queue such as Kueue's does not count",
    )
