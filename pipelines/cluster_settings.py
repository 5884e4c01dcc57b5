"""The recipe's section `cluster`: storage, secrets, node labels and limits of the cluster that runs it."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from chatmetrics.components.settings import Settings

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|[KMGT]i?)?$")]


class ClusterSettings(Settings):
    """How runs use the cluster. The defaults fit a standard installation of Kubeflow Pipelines with its own MinIO."""

    store: str = Field(
        "s3://mlpipeline/chatmetrics", pattern=r"^s3://[^/]+", description="s3:// prefix of models, inputs and runs"
    )
    s3_endpoint: str = Field(
        "http://minio-service.kubeflow:9000", description="URL of the S3 service as pods reach it; empty: Amazon S3"
    )
    s3_region: str = Field("us-east-1", description="Region of the bucket")
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto",
        description="Where requests to S3 name the bucket: path, virtual (in the host), or auto: in the host at Amazon "
        "only",
    )
    s3_ca_config_map: str = Field(
        "",
        description="ConfigMap with the CA bundle of the S3 service under `ca.crt`; empty: the usual authorities",
    )
    s3_secret: str = Field(
        "mlpipeline-minio-artifact",
        description="Kubernetes secret with the S3 credentials; empty: the service account has its own",
    )
    s3_access_key: str = Field("accesskey", description="Key of the access key in `s3_secret`")
    s3_secret_key: str = Field("secretkey", description="Key of the secret key in `s3_secret`")
    hub_secret: str = Field("", description="Kubernetes secret with a Hugging Face token under `token`; empty: none")
    teacher_secret: str = Field(
        "",
        description="Kubernetes secret with the teacher's API key, for distill only; empty: the teacher needs none",
    )
    teacher_key: str = Field("key", description="Key of the API key in `teacher_secret`")
    image_pull_secret: str = Field("", description="Kubernetes secret for pulling images; empty: none")
    service_account: str = Field("", description="Service account of the steps' pods; empty: KFP's default")
    node_label: str = Field("accelerator", min_length=1, description="Node label whose value names a node's pool")
    scales_from_zero: bool = Field(False, description="Whether a pool may have no nodes until a pod requests one")
    queue: str = Field("", description="Local queue of Kueue; empty: pods are scheduled without Kueue")
    data_claim: str = Field(
        "", description="PersistentVolumeClaim mounted at /data in preprocess, distill and evaluate; empty: none"
    )
    weights_claim: str = Field(
        "", description="PersistentVolumeClaim mounted at /weights in the steps that read the base model; empty: none"
    )
    base_parameters: float = Field(
        0.0,
        ge=0,
        description="Billions of parameters of the base model, for memory requests; 0: from its name, as in 7B",
    )
    requests: dict[str, dict[str, Quantity]] = Field(
        {}, description="CPU and memory requests by step, instead of the estimate: {train: {cpu: '8', memory: 64Gi}}"
    )
    retries: int = Field(5, ge=0, description="Times that a killed or evicted train pod is restarted")
    train_hours: float = Field(72, gt=0, description="Most hours of the train step")
    distill_hours: float = Field(72, gt=0, description="Most hours of the distill step")
    step_hours: float = Field(6, gt=0, description="Most hours of any other step")
    pending_minutes: float = Field(30, gt=0, description="Minutes that a pod may wait for a node before the run fails")
