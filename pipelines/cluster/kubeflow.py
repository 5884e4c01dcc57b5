"""The Kubeflow Pipelines API: authentication, and errors of one line when it does not answer or refuses."""

import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import urllib3
from kfp import Client
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException, OpenApiException

from chatmetrics.components.credentials import bearer, checked_ca_file, checked_secret, read_secret_file, tls_context
from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.components.redaction import one_line
from chatmetrics.components.responder import CheckedPool, UnexpectedAnswer, checked_json, is_login, what_answered
from chatmetrics.pipelines.cluster.dex import session_cookie

# A pod's service account token for KFP is mounted here; see "Connect the SDK to the API" in KFP's documentation.
TOKEN_FILE = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", "/var/run/secrets/kubeflow/pipelines/token"))
IN_CLUSTER_HOST = "http://ml-pipeline.kubeflow:8888"  # with the namespace, because runs may be in another one
NEWEST_RUNS = 200  # among which a run is found by its name or the beginning of its id
DENIED = (401, 403)
LOGIN = (
    "set a token (KFP_TOKEN), cookies (KFP_COOKIES) or a Dex login (KFP_DEX_USERNAME, KFP_DEX_PASSWORD) that has not "
    "expired, and check the namespace"
)
HEALTH = {"multi_user", "tag_name", "commit_sha", "build_date", "pipeline_store", "multiUser", "tagName", "commitSha"}
# The field that identifies an object, by kind; and the field of a list and the kind of its elements.
IDS = {
    "V2beta1Run": "run_id",
    "V2beta1RecurringRun": "recurring_run_id",
    "V2beta1Experiment": "experiment_id",
    "V2beta1Pipeline": "pipeline_id",
    "V2beta1PipelineVersion": "pipeline_version_id",
}
LISTS = {
    "V2beta1ListRunsResponse": ("runs", "V2beta1Run"),
    "V2beta1ListRecurringRunsResponse": ("recurringRuns", "V2beta1RecurringRun"),
    "V2beta1ListExperimentsResponse": ("experiments", "V2beta1Experiment"),
    "V2beta1ListPipelinesResponse": ("pipelines", "V2beta1Pipeline"),
    "V2beta1ListPipelineVersionsResponse": ("pipeline_versions", "V2beta1PipelineVersion"),
}
WHOLE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class AccessError(ServiceError):
    """KFP asks for a login, or denies access; another attempt would be denied too."""


@dataclass(frozen=True)
class Access:
    """Address of the API and credentials: at most one of token, cookies and Dex login, none inside a cluster.

    Attributes:
        host: URL of the API; empty is the API's address inside the cluster.
        namespace: namespace of the runs.
        token: bearer token.
        cookies: cookies as a browser sends them, for a login page in front of the API.
        dex_username: user name for Kubeflow's own login page.
        dex_password: its password.
        ca_certificate: file with the certificate of the authority that signed the host's certificate.
    """

    host: str
    namespace: str
    token: str = ""
    cookies: str = ""
    dex_username: str = ""
    dex_password: str = ""
    ca_certificate: str = ""

    @property
    def url(self) -> str:
        """URL of the API without a trailing slash."""
        return (self.host or IN_CLUSTER_HOST).rstrip("/")


def connect(access: Access) -> Client:
    """Return KFP's client after one successful call.

    Raises:
        InputError: the host is not a URL, a secret cannot be sent, or the CA file cannot be used.
        ServiceError: the API does not answer, denies access, or something else answers in its place.
    """
    if not access.url.startswith(("http://", "https://")):
        raise InputError(f"--kfp-host {access.host}: write a URL, for example http://localhost:8888")
    ca_file = checked_ca_file(access.ca_certificate, "KFP_CA_CERTIFICATE")
    token, cookies = checked_secret(access.token, "KFP_TOKEN"), checked_secret(access.cookies, "KFP_COOKIES")
    if access.dex_username:
        password = checked_secret(access.dex_password, "KFP_DEX_PASSWORD", in_header=False)
        cookies = session_cookie(access.url, access.dex_username.strip(), password, ca_file)
    in_pod = TOKEN_FILE.exists() and not (token or cookies)
    credentials = _PodCredentials(str(TOKEN_FILE)) if in_pod else None
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # which would log each attempt
    _check_answers(access, read_secret_file(TOKEN_FILE) if in_pod else token, cookies, ca_file)
    with api_errors(access), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client(
            host=access.url,
            namespace=access.namespace,
            existing_token=token or None,
            cookies=cookies or None,
            credentials=credentials,
            ssl_ca_cert=ca_file or None,
        )
        _check_each_answer(client, access)
        client.list_experiments(page_size=1, namespace=access.namespace)
    return client


class _PodCredentials(ServiceAccountTokenVolumeCredentials):
    """The token of the pod's service account, which the kubelet renews."""

    def refresh_api_key_hook(self, config: Any) -> None:
        """Read the token again."""
        config.api_key["authorization"] = read_secret_file(Path(self._token_path))


def _check_answers(access: Access, token: str, cookies: str, ca_file: str) -> None:
    """Send one request first, because KFP's client retries for half a minute and prints tracebacks."""
    headers = bearer(token) | ({"Cookie": cookies} if cookies else {})
    verify = tls_context(ca_file, "KFP_CA_CERTIFICATE")
    try:
        answer = httpx.get(f"{access.url}/apis/v2beta1/healthz", headers=headers, verify=verify, timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: not a host name
        raise ServiceError(_unreachable(access, type(error).__name__)) from error
    try:
        health = checked_json(answer.status_code, answer.headers, answer.content)
    except UnexpectedAnswer as error:
        raise _other_answer(access, answer.status_code, answer.headers, answer.content) from error
    if not answer.is_success:
        refusal = ApiException(status=answer.status_code, reason=answer.reason_phrase)
        refusal.body = answer.text
        raise ServiceError(f"Kubeflow Pipelines at {access.url}: {_explained(refusal)}")
    if health and not HEALTH & health.keys():
        raise _other_answer(access, answer.status_code, answer.headers, answer.content)


def _check_each_answer(client: Client, access: Access) -> None:
    """Have KFP's client raise an error for an answer that is not KFP's, for example when a session has expired."""
    api = client._run_api.api_client  # one for all of the client's APIs
    api.rest_client.pool_manager = CheckedPool(api.rest_client.pool_manager, partial(_other_answer, access))
    deserialize = api.deserialize

    def deserialized(response: Any, kind: Any) -> Any:
        try:
            _check_fields(json.loads(response.data), str(kind))
            return deserialize(response, kind)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise _other_answer(access, response.status, dict(response.getheaders()), _bytes(response.data)) from error

    api.deserialize = deserialized


def _check_fields(found: dict[str, Any], kind: str) -> None:
    """Check that an answer of KFP has the fields of its kind. All fields are optional for KFP's own client.

    Raises:
        LookupError: it has not.
    """
    if kind in IDS:
        found[IDS[kind]]
    elif kind in LISTS and found:
        # The API leaves out a list that is empty, and with it all fields if it was the only one.
        name, element = LISTS[kind]
        if not {name, "total_size", "next_page_token"} & found.keys():
            raise LookupError(name)
        for each in found.get(name) or ():
            each[IDS[element]]


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


def _other_answer(access: Access, status: int, headers: Mapping[str, str], body: bytes) -> ServiceError:
    """The error for an answer that is not KFP's."""
    what = what_answered(status, headers, body)
    if is_login(status, headers, body) or status == httpx.codes.FORBIDDEN:
        return AccessError(f"Kubeflow Pipelines at {access.url}: access denied, it sent {what}; {LOGIN}")
    return ServiceError(
        f"Kubeflow Pipelines at {access.url}: {what} came instead of an answer of the API; check --kfp-host (scheme, "
        "host, port)"
    )


@contextmanager
def api_errors(access: Access) -> Iterator[None]:
    """Turn exceptions of KFP's client into errors of one line.

    Raises:
        ServiceError: the API does not answer, refused, or does not have the requested object.
    """
    try:
        yield
    except ApiException as error:
        kind = AccessError if error.status in DENIED else ServiceError
        raise kind(f"Kubeflow Pipelines at {access.url}: {_explained(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ServiceError(_unreachable(access, _innermost(error))) from error
    except OpenApiException as error:
        raise ServiceError(
            f"Kubeflow Pipelines at {access.url}: the request is not valid ({one_line(error)})"
        ) from error


def find_run(client: Client, access: Access, reference: str) -> Any:
    """Return a run by its id, the beginning of it, or its name.

    Raises:
        InputError: no run or several runs match.
    """
    with api_errors(access):
        if WHOLE_ID.fullmatch(reference):
            return client.get_run(reference)
        recent = (
            client.list_runs(page_size=NEWEST_RUNS, sort_by="created_at desc", namespace=access.namespace).runs or []
        )
        found = [run for run in recent if run.run_id == reference or run.display_name == reference]
        found = found or [run for run in recent if len(reference) > 3 and run.run_id.startswith(reference)]
        if len(found) != 1:
            problem = "several runs match; give the id" if found else "no such run; see `chatmetrics list`"
            raise InputError(f"{reference}: {problem}")
        return client.get_run(found[0].run_id)


def _unreachable(access: Access, kind: str) -> str:
    hint = "check --kfp-host, and the port-forward if there is one"
    return f"Kubeflow Pipelines at {access.url} does not answer ({kind}); {hint}"


def _explained(error: ApiException) -> str:
    if error.status in DENIED:
        return f"access denied ({error.status}); {LOGIN}"
    try:
        body = json.loads(error.body)
        return one_line(body.get("message") or body.get("error") or body)
    except (TypeError, ValueError, AttributeError):
        return f"status {error.status} {one_line(error.reason)}; is this the address of the API?"


def _innermost(error: BaseException) -> str:
    """Return the class name of the error at the end of a chain of `reason`s, as urllib3 nests them."""
    reason = getattr(error, "reason", None)
    return _innermost(reason) if isinstance(reason, BaseException) else type(error).__name__
