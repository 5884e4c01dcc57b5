"""Configure tasks for a cluster: node, resources, secrets, volumes, retries."""

from kfp import dsl, kubernetes

from chatmetrics.components.deploy.settings import CREDENTIALS
from chatmetrics.components.run_record import NODE, RUN
from chatmetrics.components.storage.store import S3_ADDRESSING
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.distillation import Place, PoolParameters
from chatmetrics.pipelines.resources import Requests

USER = 65532  # user id in the images
STEP_LABEL = "chatmetrics/step"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
READ_BASE = {"preprocess", "distill", "train", "merge", "convert-base"}
READ_DATA = {"preprocess", "distill", "evaluate"}
RETRIES = 2  # of every step except train and deploy
DEPLOY_RETRIES = 1  # a refused model is refused again, and each attempt may take until its timeout
SHARED_MEMORY = "2Gi"
S3_CA_FOLDER = "/etc/chatmetrics-s3-ca"


def on_cluster(
    settings: ClusterSettings, requests: dict[str, Requests], deployer_secret: str = "", teacher_variable: str = ""
) -> Place:
    """Return the function that `distillation_pipeline` calls for each task.

    Everything that depends on the pool stays a parameter of the pipeline, so that one package serves all pools.

    Args:
        settings: the recipe's section `cluster`.
        requests: resource requests by step, see `requests_of`.
        deployer_secret: secret with the token of the service account that deploys; only deploy gets it.
        teacher_variable: environment variable for the teacher's key; only distill gets it.
    """

    def place(step: str, task: dsl.PipelineTask, pool: PoolParameters) -> None:
        _give_environment(task, settings)
        request = requests[step.partition("-")[0]]
        task.set_cpu_request(request.cpu).set_memory_request(request.memory).set_memory_limit(request.memory)
        kubernetes.add_pod_label(task, STEP_LABEL, step)
        kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
        # The root file system may be mounted read-only.
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
            if step != "outcome":  # KFP does not retry an exit task
                retries = DEPLOY_RETRIES if step == "deploy" else RETRIES
                task.set_retry(retries, backoff_duration="10s", backoff_factor=2)

    return place


def _give_environment(task: dsl.PipelineTask, settings: ClusterSettings) -> None:
    task.set_env_variable("AWS_REGION", settings.s3_region)
    # Survives minutes without S3: the pauses between tries grow to 20 seconds.
    task.set_env_variable("AWS_MAX_ATTEMPTS", "30")
    if settings.s3_endpoint:
        task.set_env_variable("AWS_ENDPOINT_URL_S3", settings.s3_endpoint)
    if settings.s3_addressing != "auto":
        task.set_env_variable(S3_ADDRESSING, settings.s3_addressing)
    if settings.s3_ca_config_map:
        kubernetes.use_config_map_as_volume(task, settings.s3_ca_config_map, S3_CA_FOLDER)
        task.set_env_variable("AWS_CA_BUNDLE", f"{S3_CA_FOLDER}/ca.crt")
    if settings.s3_secret:
        keys = {settings.s3_access_key: "AWS_ACCESS_KEY_ID", settings.s3_secret_key: "AWS_SECRET_ACCESS_KEY"}
        kubernetes.use_secret_as_env(task, settings.s3_secret, keys)
    if settings.hub_secret:
        kubernetes.use_secret_as_env(task, settings.hub_secret, {"token": "HF_TOKEN"})
    kubernetes.use_field_path_as_env(task, RUN, "metadata.labels['pipeline/runid']")
    kubernetes.use_field_path_as_env(task, NODE, "spec.nodeName")


def _put_on_pool(task: dsl.PipelineTask, pool: PoolParameters, settings: ClusterSettings) -> None:
    # KFP passes a pipeline parameter into the exit handler's group only if a task in it uses the parameter, and does
    # not count its use in resources. So it is registered by hand.
    task.register_pipeline_channels([pool.gpus, pool.gpu_resource])
    task.set_accelerator_type(pool.gpu_resource).set_accelerator_limit(pool.gpus)
    task.set_container_image(pool.image)
    kubernetes.add_node_selector_json(task, pool.node_selector)
    kubernetes.add_toleration_json(task, pool.tolerations)
    # Data loaders and NCCL use shared memory, of which a container has only 64 MiB by default.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)
    kubernetes.set_timeout(task, round(3600 * settings.train_hours))
    task.set_retry(settings.retries, backoff_duration="10s", backoff_factor=2, backoff_max_duration="600s")
