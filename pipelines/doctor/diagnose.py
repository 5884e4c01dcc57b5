"""Run all checks of `chatmetrics doctor` in order and report what they found."""

from collections.abc import Iterator, Mapping

from chatmetrics.components.errors import ServiceError, UserError
from chatmetrics.components.redaction import one_line, redacted
from chatmetrics.pipelines.doctor import (
    cluster_checks,
    image_checks,
    node_checks,
    rights_checks,
    store_checks,
    teacher_checks,
)
from chatmetrics.pipelines.doctor.findings import Finding, Skipped, Verdict, is_denied
from chatmetrics.pipelines.doctor.setup import Check, Setup

# `api` and `namespace` come early, because later checks use what they set in the Setup.
CHECKS: dict[str, Check] = {
    "api": cluster_checks.api,
    "kubernetes": cluster_checks.kubernetes,
    "namespace": cluster_checks.namespace,
    "service account": cluster_checks.service_account,
    "our rights": rights_checks.our_rights,
    "account rights": rights_checks.account_rights,
    "nodes": node_checks.nodes,
    "taints": node_checks.taints,
    "requests": node_checks.requests,
    "disk": node_checks.disk,
    "quota": node_checks.quota,
    "queue": cluster_checks.queue,
    "claims": cluster_checks.claims,
    "store": store_checks.store,
    "store for pods": store_checks.store_for_pods,
    "bucket policy": store_checks.bucket_policy,
    "secrets": cluster_checks.secrets,
    "images": image_checks.images,
    "teacher": teacher_checks.teacher,
    "helm rights": rights_checks.helm_rights,
    "ollama image": image_checks.ollama_image,
}
LABELS: dict[Verdict, str] = {"ok": "ok", "warning": "warning", "failed": "failed", "skipped": "-"}


def diagnose(setup: Setup) -> Iterator[tuple[str, Finding]]:
    """Yield the name and the finding of each check; no check prevents the next."""
    for name, check in CHECKS.items():
        yield name, run_check(check, setup)


def run_check(check: Check, setup: Setup) -> Finding:
    """Run one check; any error in it and a missing precondition are findings too."""
    try:
        return check(setup)
    except Skipped as reason:
        return Finding("skipped", str(reason))
    except UserError as error:
        return Finding("skipped" if is_denied(error) else "failed", str(error))
    except Exception as error:  # noqa: BLE001 - a library's error about an answer must not end the other checks
        return Finding("failed", f"the check itself failed ({type(error).__name__}: {one_line(error)})")


def report_line(name: str, finding: Finding) -> str:
    """Return the line that is printed for a check."""
    prefix = "skipped: " if finding.verdict == "skipped" else ""
    return redacted(f"{LABELS[finding.verdict]:8} {name}: {prefix}{finding.line}")


def summary(findings: Mapping[str, Finding]) -> str:
    """Return one line for all checks.

    Raises:
        ServiceError: a check failed; the error names all that did.
    """
    names: dict[Verdict, list[str]] = {verdict: [] for verdict in LABELS}
    for name, finding in findings.items():
        names[finding.verdict].append(name)
    if names["failed"]:
        raise ServiceError(f"{len(names['failed'])} of {len(findings)} checks failed: {', '.join(names['failed'])}")
    warnings, skipped = len(names["warning"]), len(names["skipped"])
    counts = [f"{len(names['ok'])} ok"]
    counts += [f"{warnings} warning{'s' if warnings > 1 else ''}"] if warnings else []
    counts += [f"{skipped} skipped"] if skipped else []
    return f"nothing failed: {', '.join(counts)}"
