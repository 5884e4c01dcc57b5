"""The gate: a student below the recipe's bar ends the run as failed, with the report."""

from kfp import dsl

from chatmetrics.components.image import image


# It always runs and raises, rather than being a task inside dsl.If: kfp's local runner takes a condition on a named
# output, which it cannot resolve, for False without an error, and the gate would stand open.
@dsl.component(base_image=image("evaluate"), install_kfp_package=False)
def gate(report: dsl.Input[dsl.Artifact], manifest_uri: str, run_uri: str) -> None:
    """Note the scores in the run's record, and fail when the student is not good enough.

    Args:
        report: folder that evaluate wrote.
        manifest_uri: the published student.
        run_uri: folder of the run's record, where scores.json is written.

    Raises:
        GateError: says the accuracy, the gate and where the report is.
    """
    import json
    from pathlib import Path

    from chatmetrics.components.errors import GateError
    from chatmetrics.components.storage.store import open_store

    page = Path(report.path) / "report.html"
    scores = json.loads((Path(report.path) / "report.json").read_text(encoding="utf-8"))
    noted = {key: scores[key] for key in ("passed", "gate", "gate_split", "gate_accuracy")}
    record = {**noted, "report": str(page), "manifest_uri": manifest_uri}
    open_store(run_uri).put_bytes(json.dumps(record, indent=2).encode(), "scores.json", overwrite=True)
    if not scores["passed"]:
        about = f" of the split '{scores['gate_split']}'" if scores["gate_split"] else ""
        raise GateError(
            f"the student answers {scores['gate_accuracy']:.1%} of the questions{about} right, "
            f"the gate is {scores['gate']:.1%}; see {page}"
        )
