"""What a task gets when it runs in a cluster's pod: node, resources, secrets, volumes, retries."""

from kfp import dsl, kubernetes

from chatmetrics.components.deploy.settings import CREDENTIALS
from chatmetrics.components.run_record import NODE, RUN
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.distillation import Place, PoolChannels
from chatmetrics.pipelines.resources import Requests

USER = 65532  # of the images
STEP_LABEL = "chatmetrics/step"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
READ_BASE = {"preprocess", "distill", "train", "merge", "convert-base"}
READ_DATA = {"preprocess", "distill", "evaluate"}
RETRIES = 2  # of a step that is not train
DEPLOY_RETRIES = 1  # a model that was refused is refused again, and each attempt may take its whole time
SHARED_MEMORY = "2Gi"


def on_cluster(
    settings: ClusterSettings, requests: dict[str, Requests], deployer_secret: str = "", teacher_variable: str = ""
) -> Place:
    """Return what `distillation_pipeline` calls for each task.

    What differs from pool to pool stays a parameter of the pipeline, so that one package serves all pools.

    Args:
        settings: the recipe's section `cluster`.
        requests: by step, see `requests_of`.
        deployer_secret: with the token of the service account that deploys, which no other step gets.
        teacher_variable: environment variable that the teacher's key goes into, which no other step gets either.
    """

    def place(step: str, task: dsl.PipelineTask, pool: PoolChannels) -> None:
        _give_environment(task, settings)
        asked = requests[step.partition("-")[0]]
        task.set_cpu_request(asked.cpu).set_memory_request(asked.memory).set_memory_limit(asked.memory)
        kubernetes.add_pod_label(task, STEP_LABEL, step)
        kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
        # The root file system may be read-only.
        kubernetes.empty_dir_mount(task, "tmp", "/tmp")
        if settings.queue:
            kubernetes.add_pod_label(task, QUEUE_LABEL, settings.queue)
        if settings.image_pull_secret:
            kubernetes.set_image_pull_secrets(task, [settings.image_pull_secret])
        if settings.data_claim and step in READ_DATA:
            kubernetes.mount_pvc(task, settings.data_claim, "/data")
        if settings.weights_claim and step in READ_BASE:
            kubernetes.mount_pvc(task, settings.weights_claim, "/weights")
        if step == "deploy":
            kubernetes.use_secret_as_volume(task, deployer_secret, str(CREDENTIALS))
        if step == "distill" and settings.teacher_secret:
            kubernetes.use_secret_as_env(task, settings.teacher_secret, {settings.teacher_key: teacher_variable})
        if step == "train":
            _put_on_pool(task, pool, settings)
        else:
            hours = settings.distill_hours if step == "distill" else settings.step_hours
            kubernetes.set_timeout(task, round(3600 * hours))
            if step != "outcome":  # KFP does not retry what ends a run
                retries = DEPLOY_RETRIES if step == "deploy" else RETRIES
                task.set_retry(retries, backoff_duration="10s", backoff_factor=2)

    return place


def _give_environment(task: dsl.PipelineTask, settings: ClusterSettings) -> None:
    task.set_env_variable("AWS_REGION", settings.s3_region)
    # A minute without S3 is outlasted: botocore's pauses grow to 20 seconds, in all to two or three minutes.
    task.set_env_variable("AWS_MAX_ATTEMPTS", "30")
    if settings.s3_endpoint:
        task.set_env_variable("AWS_ENDPOINT_URL_S3", settings.s3_endpoint)
    if settings.s3_secret:
        keys = {settings.s3_access_key: "AWS_ACCESS_KEY_ID", settings.s3_secret_key: "AWS_SECRET_ACCESS_KEY"}
        kubernetes.use_secret_as_env(task, settings.s3_secret, keys)
    if settings.hub_secret:
        kubernetes.use_secret_as_env(task, settings.hub_secret, {"token": "HF_TOKEN"})
    kubernetes.use_field_path_as_env(task, RUN, "metadata.labels['pipeline/runid']")
    kubernetes.use_field_path_as_env(task, NODE, "spec.nodeName")


def _put_on_pool(task: dsl.PipelineTask, pool: PoolChannels, settings: ClusterSettings) -> None:
    # KFP hands a parameter down to the group that a task is in only if the task is known to use it, and does not
    # look for it in resources.
    task.register_pipeline_channels([pool.gpus, pool.gpu_resource])
    task.set_accelerator_type(pool.gpu_resource).set_accelerator_limit(pool.gpus)
    task.set_container_image(pool.image)
    kubernetes.add_node_selector_json(task, pool.node_selector)
    kubernetes.add_toleration_json(task, pool.tolerations)
    # Data loaders and NCCL share memory; a container's own 64 MiB are not enough.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    kubernetes.set_timeout(task, round(3600 * settings.train_hours))
    task.set_retry(settings.retries, backoff_duration="10s", backoff_factor=2, backoff_max_duration="600s")
