"""The Kubeflow Pipelines API: authentication, and errors of one line when it does not answer or refuses."""

import json
import logging
import os
import re
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import urllib3
from kfp import Client
from kfp.client import ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException

from chatmetrics.components.errors import InputError, ServiceError
from chatmetrics.pipelines.cluster.dex import session_cookie

# A pod's service account token for KFP is mounted here; see "Connect the SDK to the API" in KFP's documentation.
TOKEN_FILE = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", "/var/run/secrets/kubeflow/pipelines/token"))
IN_CLUSTER_HOST = "http://ml-pipeline.kubeflow:8888"  # with the namespace, because runs may be in another one
NEWEST_RUNS = 200  # among which a run is found by its name or the beginning of its id
WHOLE_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


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
        InputError: the host is not a URL.
        ServiceError: the API does not answer, or denies access.
    """
    if not access.url.startswith(("http://", "https://")):
        raise InputError(f"--kfp-host {access.host}: write a URL, for example http://localhost:8888")
    cookies = access.cookies
    if access.dex_username:
        cookies = session_cookie(access.url, access.dex_username, access.dex_password, access.ca_certificate)
    in_pod = TOKEN_FILE.exists() and not (access.token or cookies)
    credentials = ServiceAccountTokenVolumeCredentials(str(TOKEN_FILE)) if in_pod else None
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # which would log each attempt
    _check_answers(access, TOKEN_FILE.read_text("utf-8") if in_pod else access.token, cookies)
    with api_errors(access), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = Client(
            host=access.url,
            namespace=access.namespace,
            existing_token=access.token or None,
            cookies=cookies or None,
            credentials=credentials,
            ssl_ca_cert=access.ca_certificate or None,
        )
        client.list_experiments(page_size=1, namespace=access.namespace)
    return client


def _check_answers(access: Access, token: str, cookies: str) -> None:
    """Send one request first, because KFP's client retries for half a minute and prints tracebacks."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= {"Cookie": cookies} if cookies else {}
    verify = ssl.create_default_context(cafile=access.ca_certificate) if access.ca_certificate else True
    try:
        answer = httpx.get(f"{access.url}/apis/v2beta1/healthz", headers=headers, verify=verify, timeout=30)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServiceError(_unreachable(access, type(error).__name__)) from error
    if answer.status_code != httpx.codes.OK:
        # A redirect leads to a login page.
        status = httpx.codes.UNAUTHORIZED if answer.is_redirect else answer.status_code
        refusal = ApiException(status=status, reason=answer.reason_phrase)
        raise ServiceError(f"Kubeflow Pipelines at {access.url}: {_explained(refusal)}")


@contextmanager
def api_errors(access: Access) -> Iterator[None]:
    """Turn exceptions of KFP's client into errors of one line.

    Raises:
        ServiceError: the API does not answer, refused, or does not have the requested object.
    """
    try:
        yield
    except ApiException as error:
        raise ServiceError(f"Kubeflow Pipelines at {access.url}: {_explained(error)}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ServiceError(_unreachable(access, _innermost(error))) from error


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
    if error.status in (401, 403):
        return (
            f"access denied ({error.status}); set a token (KFP_TOKEN), cookies (KFP_COOKIES) or a Dex login "
            "(KFP_DEX_USERNAME, KFP_DEX_PASSWORD), and check the namespace"
        )
    try:
        body = json.loads(error.body)
        return " ".join(str(body.get("message") or body.get("error") or body).split())[:300]
    except (TypeError, ValueError, AttributeError):
        return f"status {error.status} {error.reason}; is this the address of the API?"


def _innermost(error: BaseException) -> str:
    """Return the class name of the error at the end of a chain of `reason`s, as urllib3 nests them."""
    reason = getattr(error, "reason", None)
    return _innermost(reason) if isinstance(reason, BaseException) else type(error).__name__
