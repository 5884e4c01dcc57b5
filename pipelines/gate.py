"""The gate: a student that is good enough is published; one below a threshold of the gate makes the run fail."""

from typing import NamedTuple

from kfp import dsl

from chatmetrics.components.image import image


# This task always runs, and raises. It is not a task inside dsl.If, because KFP's local runner cannot resolve a
# condition on a named output and then silently takes it for False, which would skip the gate.
@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def gate(
    report: dsl.Input[dsl.Artifact],
    candidate_uri: str,
    run_uri: str,
    logs_uri: str = "",
) -> NamedTuple("Outputs", [("manifest_uri", str), ("manifest_sha256", str)]):  # type: ignore[valid-type]
    """Write the scores to the run's record and publish the student, or fail if it is not good enough.

    Args:
        report: folder written by evaluate; the acceptance test in it is published with the student.
        candidate_uri: the candidate.json that convert wrote.
        run_uri: folder of the run's record, where scores.json is written; `{run}` is replaced by the id of the KFP run.
        logs_uri: the run's folder, for the step's log and final state; empty keeps none.

    Returns:
        The URI of the published student's manifest, and its sha256, which deploy and the serving pods compare.

    Raises:
        GateError: names the thresholds of the gate that were missed, by how much, and where the report is.
        InputError: the key in CHATMETRICS_SIGNING_KEY, with which the manifest is signed, cannot be used.
    """
    import hashlib
    import json
    from pathlib import Path

    from chatmetrics.components.console import note
    from chatmetrics.components.credentials import read_secret
    from chatmetrics.components.errors import GateError
    from chatmetrics.components.run_record import recorded, with_run_id
    from chatmetrics.components.storage.manifest import (
        manifest_bytes,
        parse_manifest,
        publish,
        read_manifest,
        sign_manifest,
    )
    from chatmetrics.components.storage.signature import SIGNING_KEY
    from chatmetrics.components.storage.store import open_store

    folder = Path(report.path)
    page = folder / "report.html"
    scores = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    student = scores["systems"]["student"]
    evaluation = {
        key: scores[key] for key in ("passed", "gate", "gate_split", "gate_accuracy", "thresholds", "questions")
    }
    evaluation |= {key: scores[key] for key in ("gate_teacher", "teacher_accuracy")}
    evaluation |= {key: scores[key] for key in ("coverages", "chose_adapter") if key in scores}
    evaluation |= {verdict: student[verdict]["accuracy"] for verdict in ("strict", "official")}
    provenance = read_manifest(candidate_uri).provenance
    store, report_uri = open_store(with_run_id(run_uri)), str(page)
    with recorded("gate", logs_uri):
        if logs_uri:  # on a cluster, where the artifact's local path is gone once the pod has ended
            store.put_bytes(page.read_bytes(), "report.html", overwrite=True)
            report_uri = store.uri("report.html")
        acceptance_test = folder / "acceptance_test" if (folder / "acceptance_test").is_dir() else None
        manifest_uri = publish(candidate_uri, evaluation, acceptance_test) if scores["passed"] else ""
        content = manifest_bytes(manifest_uri) if manifest_uri else b""
        manifest_sha256 = hashlib.sha256(content).hexdigest() if content else ""
        if manifest_uri and (key := read_secret(SIGNING_KEY)):
            sign_manifest(manifest_uri, content, key, SIGNING_KEY)
        if manifest_uri and acceptance_test:
            published_test = parse_manifest(content, manifest_uri).acceptance_test
            if not (acceptance_test / published_test).is_file():
                note(f"{manifest_uri} was published before; its acceptance test is not changed")
        record = {**evaluation, "report": report_uri, "candidate_uri": candidate_uri, "manifest_uri": manifest_uri}
        record |= {"manifest_sha256": manifest_sha256, "provenance": provenance}
        store.put_bytes(json.dumps(record, indent=2).encode(), "scores.json", overwrite=True)
        if not scores["passed"]:
            missed = " and ".join(item["sentence"] for item in scores["thresholds"] if not item["passed"])
            raise GateError(f"the student is below the gate: {missed}; it is not published, see {report_uri}")
    return (manifest_uri, manifest_sha256)
