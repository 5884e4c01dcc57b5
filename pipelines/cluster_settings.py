"""The recipe's `cluster` section: what a run needs to know of the cluster that it is submitted to."""

from typing import Annotated

from pydantic import Field, StringConstraints

from chatmetrics.components.settings import Settings

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]


class ClusterSettings(Settings):
    """The defaults fit a standard installation of Kubeflow Pipelines with its own MinIO."""

    store: str = Field(
        "s3://mlpipeline/chatmetrics", pattern=r"^s3://[^/]+", description="s3:// prefix for models, inputs and runs"
    )
    s3_endpoint: str = Field(
        "http://minio-service.kubeflow:9000", description="as pods reach it; empty is Amazon's own"
    )
    s3_region: str = Field("us-east-1", description="region of the bucket")
    s3_secret: str = Field(
        "mlpipeline-minio-artifact",
        description="Kubernetes secret with the credentials; empty where the service account has its own",
    )
    s3_access_key: str = Field("accesskey", description="key in the secret")
    s3_secret_key: str = Field("secretkey", description="key in the secret")
    hub_secret: str = Field("", description="Kubernetes secret with a Hugging Face token under `token`; empty: none")
    teacher_secret: str = Field(
        "", description="Kubernetes secret with the teacher's key, for distill alone; empty: the teacher wants none"
    )
    teacher_key: str = Field("key", description="key in the secret")
    image_pull_secret: str = Field("", description="Kubernetes secret for the registry; empty: none")
    service_account: str = Field("", description="of the steps' pods; empty is KFP's own")
    node_label: str = Field("accelerator", min_length=1, description="label whose value tells a node's pool")
    scales_from_zero: bool = Field(False, description="whether a pool may have no node until a pod asks for one")
    queue: str = Field("", description="Kueue's local queue; empty: pods are scheduled without Kueue")
    data_claim: str = Field(
        "", description="PersistentVolumeClaim mounted at /data in preprocess, distill and evaluate; empty: none"
    )
    weights_claim: str = Field("", description="claim mounted at /weights in the steps that read the base; empty: none")
    base_parameters: float = Field(
        0.0, ge=0, description="billions of parameters of the base, for memory requests; 0 reads its name, as in 7B"
    )
    requests: dict[str, dict[str, Quantity]] = Field(
        {}, description="instead of the estimate, by step: {train: {cpu: '8', memory: 64Gi}}"
    )
    retries: int = Field(5, ge=0, description="times that a train pod which was killed or evicted is started again")
    train_hours: float = Field(72, gt=0, description="most hours of training")
    distill_hours: float = Field(72, gt=0, description="most hours of asking a teacher")
    step_hours: float = Field(6, gt=0, description="most hours of any other step")
    pending_minutes: float = Field(30, gt=0, description="minutes that a pod may wait for a node before the run ends")
