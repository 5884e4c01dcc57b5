"""Checks of the store: from this machine, from pods, and whether the bucket is private."""

import os
import uuid
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from kubernetes import client

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import StorageError
from chatmetrics.components.storage.s3_client import s3_client
from chatmetrics.components.storage.store import open_store
from chatmetrics.pipelines.doctor.findings import Finding, Skipped
from chatmetrics.pipelines.doctor.setup import Setup, find


def store(setup: Setup) -> Finding:
    """Whether an object can be written, read back and deleted with this machine's credentials."""
    uri = _store_uri(setup)
    objects = open_store(f"{uri}/doctor")
    key, data = uuid.uuid4().hex, os.urandom(1024)
    objects.put_bytes(data, key, overwrite=False)
    try:
        if objects.read_bytes(key) != data:
            raise StorageError(f"{objects.uri(key)}: the data read back differ from the data written")
    finally:
        objects.delete(key)
    if objects.exists(key):
        return Finding("failed", f"{objects.uri(key)} still exists after it was deleted; grant s3:DeleteObject")
    return Finding("ok", f"{uri} written, read back, deleted")


def store_for_pods(setup: Setup) -> Finding:
    """Whether the store's address for pods is a service in the cluster that has ready endpoints."""
    endpoint = setup.settings.s3_endpoint
    host = urlsplit(endpoint).hostname or ""
    name, namespace, *rest = [*host.removesuffix(".svc.cluster.local").removesuffix(".svc").split("."), ""]
    namespace = namespace or setup.namespace
    if not endpoint or any(rest) or name.isdigit():
        return Finding(
            "ok", f"{endpoint or 'Amazon'}, outside the cluster: access from pods cannot be checked from here"
        )
    service = find(setup.kubernetes, setup.kubernetes.core.read_namespaced_service, name, namespace)
    if service is None:
        return Finding(
            "warning",
            f"{endpoint}: no service {name} in namespace {namespace}; unless that is a name outside the cluster, pods "
            "will not find the store: set cluster.s3_endpoint",
        )
    if service.spec.type != "ExternalName" and not _has_ready_endpoint(setup.kubernetes, name, namespace):
        return Finding("failed", f"{endpoint}: the service {name} in {namespace} has no ready endpoint")
    return Finding("ok", endpoint)


def bucket_policy(setup: Setup) -> Finding:
    """Whether the bucket is not public."""
    bucket = _store_uri(setup).removeprefix("s3://").partition("/")[0]
    try:
        answer = s3_client().get_bucket_policy_status(Bucket=bucket)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "an unknown error")
        if code == "NoSuchBucketPolicy":
            return Finding("ok", f"{bucket} has none, so only its owner has access")
        raise Skipped(f"the store does not tell ({code})") from error
    except (BotoCoreError, ValueError) as error:
        raise Skipped(f"the store does not answer ({type(error).__name__})") from error
    if answer["PolicyStatus"]["IsPublic"]:
        return Finding("failed", f"the bucket {bucket} is public: aws s3api delete-bucket-policy --bucket {bucket}")
    return Finding("ok", f"{bucket} is not public")


def _store_uri(setup: Setup) -> str:
    """Return the store's URI.

    Raises:
        Skipped: this machine has no credentials for it.
        StorageError: the AWS environment cannot be used.
    """
    try:
        if boto3.Session().get_credentials() is None:
            raise Skipped("this machine has no AWS_ACCESS_KEY_ID; pods take theirs from the secret")
    except BotoCoreError as error:
        raise StorageError(f"the AWS environment is unusable ({type(error).__name__}); check AWS_PROFILE") from error
    return setup.settings.store.rstrip("/")


def _has_ready_endpoint(kubernetes: KubernetesClient, service: str, namespace: str) -> bool:
    list_slices = client.DiscoveryV1Api(kubernetes.api).list_namespaced_endpoint_slice
    slices = kubernetes.call(list_slices, namespace, label_selector=f"kubernetes.io/service-name={service}").items
    endpoints = [endpoint for found in slices for endpoint in found.endpoints or ()]
    return any(endpoint.conditions is None or endpoint.conditions.ready is not False for endpoint in endpoints)
