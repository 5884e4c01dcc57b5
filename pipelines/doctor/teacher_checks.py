"""The check of a recipe's teacher."""

from urllib.parse import urlsplit

import httpx

from chatmetrics.components.credentials import bearer, read_secret, tls_context
from chatmetrics.components.responder import UnexpectedAnswer, checked_json, what_answered
from chatmetrics.pipelines.doctor.findings import Finding
from chatmetrics.pipelines.doctor.setup import Setup

DENIED = (401, 403)


def teacher(setup: Setup) -> Finding:
    """Whether the endpoint of the recipe's teacher answers, lets us in and has the model."""
    distill = setup.recipe.distill if setup.recipe else None
    if distill is None or not distill.enabled:
        return Finding("ok", "the recipe names no teacher")
    if distill.is_self:
        return Finding("ok", "self: the student is its own teacher")
    if distill.is_scripted:
        return Finding("ok", "scripted: the step starts it")
    variable = distill.api_key_variable
    key = read_secret(variable)
    url = f"{distill.base_url.rstrip('/')}/models"
    try:
        answer = httpx.get(url, headers=bearer(key), timeout=20, verify=tls_context())
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: not a host name
        if (urlsplit(url).hostname or "").endswith((".svc", ".svc.cluster.local")):
            return Finding("skipped", f"{url} is a name inside the cluster, and does not answer from here")
        return Finding("failed", f"{url} does not answer ({type(error).__name__}); check base_url and the network")
    if answer.status_code in DENIED:
        problem = f"the key in {variable} is refused" if key else f"it requires a key: set {variable}"
        return Finding("failed", f"{url}: {problem} ({answer.status_code})")
    try:
        models = [
            str(entry["id"]) for entry in checked_json(answer.status_code, answer.headers, answer.content)["data"]
        ]
    except (UnexpectedAnswer, LookupError, TypeError):
        what = what_answered(answer.status_code, answer.headers, answer.content)
        return Finding("failed", f"{url} sent {what} instead of a list of models; is base_url right?")
    if distill.model not in models:
        return Finding("failed", f"{url} has no {distill.model}; it has {', '.join(models[:5]) or 'none'}")
    return Finding("ok", f"{distill.model} at {distill.base_url}")
