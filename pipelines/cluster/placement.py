"""Configure tasks for a cluster: node, resources, secrets, volumes, retries."""

from collections.abc import Mapping

from kfp import dsl, kubernetes
from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.deploy.settings import CREDENTIALS
from chatmetrics.components.nl2sql.databases.addresses import password_variables
from chatmetrics.components.run_record import NODE, RUN
from chatmetrics.components.storage.signature import SIGNING_KEY
from chatmetrics.components.storage.store import S3_ADDRESSING
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.distillation import Place, PoolParameters
from chatmetrics.pipelines.pools import Pool, step_pools
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import DISK, Requests, requests_disk, requests_of

USER = 65532  # user id in the images
STEP_LABEL = "chatmetrics/step"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
READ_BASE = {"preprocess", "distill", "train", "merge", "convert-base"}  # at least the tokenizer of the base model
READ_DATA = {"preprocess", "distill", "evaluate"}  # questions or databases
RETRIES = 2  # of every step except train and deploy
DEPLOY_RETRIES = 1  # a refused model is refused again, and each attempt may take until its timeout
PAUSE_SECONDS = 30  # between two attempts
QUEUE_SECONDS = 7 * 24 * 3600  # that each attempt may wait for a queue, a node and its image
SHARED_MEMORY = "2Gi"
S3_CA_FOLDER = "/etc/chatmetrics-s3-ca"


def on_cluster(recipe: Recipe, pools: Mapping[str, Pool]) -> Place:
    """Return the function that `distillation_pipeline` calls for each task.

    Everything that depends on train's pool stays a parameter of the pipeline, so that one package serves all pools.

    Args:
        recipe: the recipe. Only deploy gets its deployer's secret, only distill its teacher's key, only the gate the
            key that signs, only the steps that read the base model the Hub's token, and only those that read databases
            their password.
        pools: the known pools, for the steps in `cluster.pools`.

    Raises:
        InputError: the size of the base model or a pool in `cluster.pools` is unknown.
    """
    settings, requests, placed = recipe.cluster, requests_of(recipe), step_pools(recipe, pools)
    read_data = steps_that_read_data(recipe)

    def place(label: str, task: dsl.PipelineTask, pool: PoolParameters) -> None:
        step = label.partition("-")[0]
        _give_environment(task, settings)
        request = requests[step]
        task.set_cpu_request(request.cpu).set_memory_request(request.memory).set_memory_limit(request.memory)
        kubernetes.add_pod_label(task, STEP_LABEL, label)
        kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
        _give_disk(task, request, settings, requests_disk(step, recipe, placed))
        if settings.queue:
            kubernetes.add_pod_label(task, QUEUE_LABEL, settings.queue)
        if settings.image_pull_secret:
            kubernetes.set_image_pull_secrets(task, [settings.image_pull_secret])
        if settings.data_claim and step in read_data:
            kubernetes.mount_pvc(task, settings.data_claim, "/data")
        if settings.weights_claim and label in READ_BASE:
            kubernetes.mount_pvc(task, settings.weights_claim, "/weights")
        if settings.hub_secret and label in READ_BASE:
            kubernetes.use_secret_as_env(task, settings.hub_secret, {"token": "HF_TOKEN"})
        if step == "deploy":
            kubernetes.use_secret_as_volume(task, recipe.deploy.secret, str(CREDENTIALS))
        if step == "distill" and settings.teacher_secret:
            variable = recipe.distill.api_key_variable
            kubernetes.use_secret_as_env(task, settings.teacher_secret, {settings.teacher_key: variable})
        if step in read_data and settings.database_secret:
            for variable in _password_variables(recipe):
                kubernetes.use_secret_as_env(task, settings.database_secret, {settings.database_key: variable})
        if step == "gate" and settings.signing_secret:
            kubernetes.use_secret_as_env(task, settings.signing_secret, {settings.signing_key: SIGNING_KEY})
        if step == "train":
            _put_on_pool(task, pool)
        if step in placed:
            _put_on_nodes(task, step, placed[step], settings.node_label)
        _limit(task, step, settings)

    return place


def _password_variables(recipe: Recipe) -> list[str]:
    """The environment variables with the passwords of the accounts in the recipe's addresses."""
    addresses = filter(None, [recipe.preprocess.databases, recipe.preprocess.translate_to])
    return list(dict.fromkeys(name for address in addresses for name in password_variables(address)))


def steps_that_read_data(recipe: Recipe) -> set[str]:
    """Return the steps that `cluster.data_claim` is mounted in: those that read questions or databases."""
    return READ_DATA | ({"train"} if recipe.train.early_stopping == "accuracy" else set())


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
    kubernetes.use_field_path_as_env(task, RUN, "metadata.labels['pipeline/runid']")
    kubernetes.use_field_path_as_env(task, NODE, "spec.nodeName")


def _give_disk(task: dsl.PipelineTask, request: Requests, settings: ClusterSettings, requested: bool) -> None:
    """Mount /tmp, the only folder that steps write to: the root file system may be mounted read-only."""
    if settings.scratch_class and request.disk:
        kubernetes.add_ephemeral_volume(
            task, "tmp", "/tmp", ["ReadWriteOnce"], request.disk, storage_class_name=settings.scratch_class
        )
        return
    kubernetes.empty_dir_mount(task, "tmp", "/tmp")
    if requested:
        # KFP has requests for CPU and memory alone. It takes any resource's name for an accelerator's, one per task.
        task.set_accelerator_type(DISK).set_accelerator_limit(str(int(parse_quantity(request.disk))))


def _put_on_pool(task: dsl.PipelineTask, pool: PoolParameters) -> None:
    # KFP passes a pipeline parameter into the exit handler's group only if a task in it uses the parameter, and does
    # not count its use in resources. So it is registered by hand.
    task.register_pipeline_channels([pool.gpus, pool.gpu_resource])
    task.set_accelerator_type(pool.gpu_resource).set_accelerator_limit(pool.gpus)
    task.set_container_image(pool.image)
    kubernetes.add_node_selector_json(task, pool.node_selector)
    kubernetes.add_toleration_json(task, pool.tolerations)
    # Data loaders and NCCL use shared memory, of which a container has only 64 MiB by default.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit=SHARED_MEMORY)


def _put_on_nodes(task: dsl.PipelineTask, step: str, pool: Pool, node_label: str) -> None:
    """Run a step other than train on the nodes of a pool, on their CPUs unless the pool has an image for its GPUs."""
    if pool.label:
        kubernetes.add_node_selector(task, node_label, pool.label)
    for toleration in pool.tolerations:
        values = toleration.model_dump(exclude_unset=True, exclude_none=True)
        kubernetes.add_toleration(task, **values)
    if pool.runs_on_gpu(step):
        task.set_accelerator_type(pool.resource).set_accelerator_limit("1")
        task.set_container_image(pool.evaluate_image)


def _limit(task: dsl.PipelineTask, step: str, settings: ClusterSettings) -> None:
    """Set the most time of an attempt, and the number of further attempts."""
    hours = {"train": settings.train_hours, "distill": settings.distill_hours, "evaluate": settings.evaluate_hours}
    seconds = max(1, round(3600 * hours.get(step, settings.step_hours)))
    kubernetes.set_timeout(task, seconds)
    if step == "outcome":  # KFP does not retry an exit task
        return
    retries = {"train": settings.retries, "deploy": DEPLOY_RETRIES}.get(step, RETRIES)
    # Argo counts the maximum from the start of the first attempt: after it there is no other attempt, and one that
    # runs is ended. So it is longer than all attempts together.
    longest = (retries + 1) * (seconds + PAUSE_SECONDS + QUEUE_SECONDS)
    task.set_retry(retries, backoff_duration=f"{PAUSE_SECONDS}s", backoff_factor=1, backoff_max_duration=f"{longest}s")
