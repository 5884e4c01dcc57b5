"""The gate: a student that is good enough is published; one below the recipe's threshold ends the run as failed."""

from kfp import dsl

from chatmetrics.components.image import image


# It always runs and raises, rather than being a task inside dsl.If: kfp's local runner takes a condition on a named
# output, which it cannot resolve, for False without an error, and the gate would stand open.
@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def gate(report: dsl.Input[dsl.Artifact], candidate_uri: str, run_uri: str, logs_uri: str = "") -> str:
    """Note the scores in the run's record and publish the student, or fail when it is not good enough.

    Args:
        report: folder that evaluate wrote; the acceptance test in it is published with the student.
        candidate_uri: the student that convert left.
        run_uri: folder of the run's record, where scores.json is written, `{run}` being the id of the KFP run.
        logs_uri: the run's folder, where the step keeps its log and how it ended; empty keeps none.

    Returns:
        The URI of the published student's manifest.

    Raises:
        GateError: says which thresholds of the gate were missed, by how much, and where the report is.
    """
    import json
    from pathlib import Path

    from chatmetrics.components.errors import GateError
    from chatmetrics.components.run_record import recorded, with_run_id
    from chatmetrics.components.storage.manifest import publish, read_manifest
    from chatmetrics.components.storage.store import open_store

    page = Path(report.path) / "report.html"
    scores = json.loads((Path(report.path) / "report.json").read_text(encoding="utf-8"))
    student = scores["systems"]["student"]
    noted = {key: scores[key] for key in ("passed", "gate", "gate_split", "gate_accuracy", "thresholds", "questions")}
    noted |= {key: scores[key] for key in ("gate_teacher", "teacher_accuracy")}
    noted |= {verdict: student[verdict]["accuracy"] for verdict in ("strict", "official")}
    provenance = read_manifest(candidate_uri).provenance
    store, kept = open_store(with_run_id(run_uri)), str(page)
    with recorded("gate", logs_uri):
        if logs_uri:  # the pod's own copy ends with it
            store.put_bytes(page.read_bytes(), "report.html", overwrite=True)
            kept = store.uri("report.html")
        folder = Path(report.path) / "acceptance_test"
        acceptance_test = folder if folder.is_dir() else None
        manifest_uri = publish(candidate_uri, noted, acceptance_test) if scores["passed"] else ""
        if (
            manifest_uri
            and acceptance_test
            and not (acceptance_test / read_manifest(manifest_uri).acceptance_test).is_file()
        ):
            print(f"note: {manifest_uri} was published before; its acceptance test stays as it was", flush=True)
        record = {**noted, "report": kept, "candidate_uri": candidate_uri, "manifest_uri": manifest_uri}
        record["provenance"] = provenance
        store.put_bytes(json.dumps(record, indent=2).encode(), "scores.json", overwrite=True)
        if not scores["passed"]:
            thresholds = scores["thresholds"]
            missed = " and ".join(threshold["sentence"] for threshold in thresholds if not threshold["passed"])
            raise GateError(f"the student is below the gate: {missed}; it is not published, see {kept}")
    return manifest_uri
