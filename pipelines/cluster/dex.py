"""Log in at Dex, the login page in front of Kubeflow's API, as a browser would."""

import re
from html import unescape
from urllib.parse import urljoin

import httpx

from chatmetrics.components.credentials import tls_context
from chatmetrics.components.errors import ServiceError

FORM = re.compile(r"<form[^>]*action=\"([^\"]+)\"", re.IGNORECASE)
LOCAL = "/local"  # Dex's own users, if its page offers several login methods


def session_cookie(host: str, username: str, password: str, ca_certificate: str = "") -> str:
    """Return the cookies of a session, in the form of a Cookie header.

    Follows the redirects from the API to Dex's page, submits the form and follows the redirects back, as described in
    KFP's documentation ("Full Kubeflow, from outside the cluster").

    Raises:
        InputError: the CA file cannot be used.
        ServiceError: the login page does not answer, or it refused the login.
    """
    verify = tls_context(ca_certificate, "KFP_CA_CERTIFICATE")
    try:
        with httpx.Client(follow_redirects=True, verify=verify, timeout=30) as browser:
            page = browser.get(f"{host}/")
            if not _is_login(page):
                return _cookies(browser)  # no login is required
            if page.url.path.endswith("/auth"):
                page = browser.get(page.url.copy_with(path=page.url.path + LOCAL))
            form = FORM.search(page.text)
            action = urljoin(str(page.url), unescape(form[1])) if form else str(page.url)
            answer = browser.post(action, data={"login": username, "password": password})
            if _is_approval(answer):
                answer = browser.post(str(answer.url), data={"approval": "approve"})
            if _is_login(answer) or answer.is_error:
                raise ServiceError(f"{host}: Dex refused the login of {username!r}; check KFP_DEX_PASSWORD")
            return _cookies(browser)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: not a host name
        raise ServiceError(f"{host}: the login page does not answer ({type(error).__name__})") from error


def _is_login(page: httpx.Response) -> bool:
    return "/auth" in page.url.path or "/login" in page.url.path


def _is_approval(page: httpx.Response) -> bool:
    return page.url.path.endswith("/approval")


def _cookies(browser: httpx.Client) -> str:
    return "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
