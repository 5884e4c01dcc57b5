"""Checks of the store: from this machine, from pods, and whether the bucket is private."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from kubernetes import client

from chatmetrics.components.deploy.kubernetes_client import KubernetesClient
from chatmetrics.components.errors import StorageError
from chatmetrics.components.responder import UnexpectedAnswer
from chatmetrics.components.storage.files import AlreadyThereError
from chatmetrics.components.storage.s3_client import s3_client
from chatmetrics.components.storage.s3_store import S3Store
from chatmetrics.components.storage.store import Store, open_store
from chatmetrics.pipelines.doctor.findings import Finding, Skipped, combined
from chatmetrics.pipelines.doctor.setup import Setup

PART = 5 * 2**20  # bytes; the smallest that S3 accepts for a part that is not the last


def store(setup: Setup) -> Finding:
    """Whether the store does what runs use, with this machine's credentials.

    That is: small objects, an upload and a download in parts, conditional writes, metadata, lists, and deleting.
    """
    uri = _store_uri(setup)
    objects = open_store(f"{uri}/doctor", PART)
    small, large = (f"{uuid.uuid4().hex}-{name}" for name in ("small", "large"))
    data = os.urandom(PART + 1024)
    try:
        problems = [*_small_object(objects, small, data[:1024]), *_object_in_parts(objects, large, data)]
        if sorted(key for key in objects.list("") if key in (small, large)) != sorted((small, large)):
            problems.append(Finding("failed", f"{uri}/doctor: what was written is not listed; check s3:ListBucket"))
    finally:
        for key in (small, large):
            objects.delete(key)
    if objects.exists(small):
        return Finding("failed", f"{objects.uri(small)} still exists after it was deleted; grant s3:DeleteObject")
    return combined(problems or [Finding("ok", f"{uri} written, read back, deleted, in one piece and in parts")])


def _small_object(objects: Store, key: str, data: bytes) -> Iterator[Finding]:
    """What is wrong with a small object, its checksum and a conditional write."""
    objects.put_bytes(data, key, overwrite=False)
    if objects.read_bytes(key) != data:
        raise StorageError(f"{objects.uri(key)}: the data read back differ from the data written")
    if objects.stamp(key) != hashlib.sha256(data).hexdigest():
        yield Finding(
            "warning",
            "the store does not keep metadata: files are compared by reading them, and not verified when read",
        )
    try:
        objects.put_bytes(data[::-1], key, overwrite=False)
    except AlreadyThereError:
        return
    yield Finding(
        "warning", "the store ignores If-None-Match: of two writers at the same instant, one overwrites the other"
    )


def _object_in_parts(objects: Store, key: str, data: bytes) -> Iterator[Finding]:
    """What is wrong with a file that is uploaded and downloaded in parts, as every file over 64 MiB is."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "large"
        path.write_bytes(data)
        objects.put_file(path, key)
        objects.get_file(key, path.with_name("back"), hashlib.sha256(data).hexdigest())
    if isinstance(objects, S3Store) and (why := objects.why_not_resumable(key)):
        yield Finding(
            "warning",
            f"unfinished uploads cannot be listed ({why}), so an interrupted upload starts again; grant "
            "s3:ListBucketMultipartUploads and s3:ListMultipartUploadParts",
        )


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
    service = setup.kubernetes.find(setup.kubernetes.core.read_namespaced_service, name, namespace)
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
    except UnexpectedAnswer as error:
        raise Skipped(f"the store does not tell; it sent {error}") from error
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
    s3_client()  # checks the AWS environment
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
