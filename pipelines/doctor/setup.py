"""What `chatmetrics doctor` checks: a cluster, a recipe and a GPU pool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from kubernetes import client
from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import InputError, ServiceError, UserError
from chatmetrics.pipelines.cluster.kubeflow import Access
from chatmetrics.pipelines.cluster.kubernetes import ready_nodes, untolerated
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.doctor.findings import Finding, Skipped
from chatmetrics.pipelines.pools import Pool, load_pools, step_pools
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import DISK, requests_disk, requests_of

Amounts = dict[str, Decimal]  # by resource: cpu, memory, pods, nvidia.com/gpu

WITHOUT_TOLERATIONS = Pool(gpu_memory_gib=0, tolerations=[])  # a step without a pool needs a node without taints


@dataclass
class Setup:
    """What is checked.

    Attributes:
        access: address of KFP and credentials for it.
        settings: the recipe's section `cluster`, or its defaults.
        recipe: the recipe; None if none was given.
        pool_name: name of `given_pool`.
        given_pool: pool that train is to run on; None if none was given.
        deploy_namespace: namespace where models are to be served; empty is the runs' namespace.
        multi_user: whether KFP is installed in multi-user mode; set by the check `api`.
        namespace_missing: whether the runs' namespace does not exist; set by the check `namespace`.
        known_pools: the known pools, for the steps in the recipe's `cluster.pools`.
    """

    access: Access
    settings: ClusterSettings
    recipe: Recipe | None = None
    pool_name: str = ""
    given_pool: Pool | None = None
    deploy_namespace: str = ""
    multi_user: bool = False
    namespace_missing: bool = False
    known_pools: Mapping[str, Pool] = field(default_factory=load_pools)

    @property
    def namespace(self) -> str:
        """The runs' namespace."""
        return self.access.namespace

    @property
    def account(self) -> str:
        """The service account of the steps' pods."""
        return self.settings.service_account or ("default-editor" if self.multi_user else "pipeline-runner")

    @cached_property
    def client_or_error(self) -> KubernetesClient | ServiceError | InputError:
        """A client that can reach Kubernetes, or why there is none."""
        try:
            kubernetes = KubernetesClient(self.namespace)
            review = {"spec": {"resourceAttributes": {"verb": "list", "resource": "pods"}}}
            authorization = client.AuthorizationV1Api(kubernetes.api)
            kubernetes.call(authorization.create_self_subject_access_review, review)
        except (ServiceError, InputError) as error:
            return error
        return kubernetes

    @property
    def kubernetes(self) -> KubernetesClient:
        """A client for Kubernetes.

        Raises:
            Skipped: we have no access to Kubernetes.
        """
        if isinstance(self.client_or_error, UserError):
            raise Skipped("no access to Kubernetes")
        return self.client_or_error

    @property
    def kubernetes_in_namespace(self) -> KubernetesClient:
        """The same client, for checks of objects in the runs' namespace.

        Raises:
            Skipped: the namespace does not exist; also as `kubernetes`.
        """
        if self.namespace_missing:
            raise Skipped(f"there is no namespace {self.namespace}")
        return self.kubernetes

    @property
    def pool(self) -> Pool:
        """The pool.

        Raises:
            Skipped: none was given.
        """
        if self.given_pool is None:
            raise Skipped("no --gpu-pool given")
        return self.given_pool

    @property
    def gpus(self) -> int:
        """The number of GPUs that train requests."""
        return int(self.pool.gpu_memory_gib > 0) * (self.recipe.train.processes if self.recipe else 1)

    def requests(self) -> dict[str, Amounts]:
        """Return what each step's pod requests, train first.

        Raises:
            InputError: as `requests_of`.
            Skipped: no recipe or no pool was given.
        """
        if self.recipe is None:
            raise Skipped("no RECIPE given")
        gpus = {"train": {self.pool.resource: Decimal(self.gpus)}} if self.gpus else {}
        gpus |= {step: {pool.resource: Decimal(1)} for step, pool in self.placed.items() if pool.runs_on_gpu(step)}
        requests = requests_of(self.recipe)
        disk = {step: requests[step].disk for step in requests if requests_disk(step, self.recipe, self.placed)}
        return {
            step: {"cpu": parse_quantity(requests[step].cpu), "memory": parse_quantity(requests[step].memory)}
            | ({DISK: parse_quantity(disk[step])} if step in disk else {})
            | gpus.get(step, {})
            for step in sorted(requests, key=lambda step: step != "train")
        }

    @property
    def placed(self) -> dict[str, Pool]:
        """The pools of the steps in the recipe's `cluster.pools`.

        Raises:
            InputError: there is no pool of that name.
        """
        return step_pools(self.recipe, self.known_pools) if self.recipe else {}

    def nodes_of(self, step: str) -> list[Any]:
        """Return the nodes that a step may use; train's are `pool_nodes`."""
        if step == "train":
            return self.pool_nodes()
        return self._usable_nodes(self.placed.get(step, WITHOUT_TOLERATIONS))

    def pool_nodes(self) -> list[Any]:
        """Return the pool's nodes that train may use; if there are none, all nodes of the pool."""
        nodes = ready_nodes(self.kubernetes, self.pool, self.settings.node_label)
        return [node for node in nodes if not untolerated(node, self.pool)] or nodes

    def untainted_nodes(self) -> list[Any]:
        """Return the nodes that every step may use."""
        return self._usable_nodes(WITHOUT_TOLERATIONS)

    def _usable_nodes(self, pool: Pool) -> list[Any]:
        nodes = ready_nodes(self.kubernetes, pool, self.settings.node_label)
        return [node for node in nodes if not untolerated(node, pool)]


Check = Callable[[Setup], Finding]
