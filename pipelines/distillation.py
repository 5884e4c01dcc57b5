"""The one DAG, from questions and SQL to a published model. It runs on this machine and, compiled, on a cluster.

    preprocess -> [distill] -> train -> merge -> convert -> evaluate -> gate -> [deploy]

Its tasks depend on the recipe: with a teacher, distill comes before train. With several rounds of distillation,
distill to evaluate run once per round. A student that is its own teacher is trained on the gold SQL before. deploy is
there if the recipe enables it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from chatmetrics.components.convert.component import convert
from chatmetrics.components.deploy.component import deploy
from chatmetrics.components.distill.component import distill
from chatmetrics.components.evaluate.component import evaluate
from chatmetrics.components.merge.component import merge
from chatmetrics.components.preprocess.component import preprocess
from chatmetrics.components.train.component import train
from chatmetrics.pipelines.gate import gate
from chatmetrics.pipelines.outcome import outcome


@dataclass(frozen=True)
class PoolParameters:
    """The pipeline's parameters that determine where train runs; their values come from `Pool.arguments`."""

    node_selector: Any
    tolerations: Any
    gpu_resource: Any
    gpus: Any
    image: Any


@dataclass(frozen=True)
class TrainedStudent:
    """Outputs of train, merge and convert: the adapter, and the URI of the student's candidate.json."""

    adapter: Any
    candidate_uri: Any


# Called with each task's step name; adds what a task needs on a cluster. On one machine a task needs nothing more.
Place = Callable[[str, dsl.PipelineTask, PoolParameters], object]


def distillation_pipeline(
    place: Place = lambda step, task, pool: None,
    with_deploy: bool = False,
    students: int = 0,
    is_self: bool = False,
) -> BaseComponent:
    """Return the DAG.

    Args:
        place: called with each task after it was created.
        with_deploy: whether the DAG ends with deploying the model to the cluster.
        students: students that are trained one after the other, see `DistillSettings.students`; 0 without distillation.
        is_self: whether a student is its own teacher, so that the first one is trained on the gold SQL.
    """

    # KFP allows only flat parameters, takes no keyword-only ones, and wants constants as defaults (hence B006).
    @dsl.pipeline(name="distillation", description="From questions and SQL to a small model that writes SQL.")
    def distillation(
        # What to train
        name: str,
        base_model: str,
        revision: str,
        # Settings of the steps that every recipe has
        preprocess_settings: dict[str, Any],
        train_settings: dict[str, Any],
        merge_settings: dict[str, Any],
        convert_settings: dict[str, Any],
        evaluate_settings: dict[str, Any],
        # Where results are stored
        models_uri: str,
        merged_uri: str,
        checkpoints: str,
        run_uri: str,
        logs_uri: str = "",
        answers_uri: str = "",
        # Distillation
        distill_settings: dict[str, Any] = {},  # noqa: B006
        round_evaluate_settings: dict[str, Any] = {},  # noqa: B006
        ledger_uri: str = "",
        # Deployment
        deploy_settings: dict[str, Any] = {},  # noqa: B006
        # Fingerprints for KFP's cache, and where to resume
        data_fingerprint: str = "",
        base_fingerprint: str = "",
        resume_from: str = "",
        resume_rounds_from: str = "",
        # GPU pool of train, on a cluster
        node_selector: dict[str, Any] = {},  # noqa: B006
        tolerations: list[Any] = [],  # noqa: B006
        gpu_resource: str = "nvidia.com/gpu",
        gpus: str = "0",
        train_image: str = "",
        price_per_hour: float = 0.0,
    ) -> None:
        """Distill NL2SQL ability into a copy of the base model.

        Args:
            name: Name of the published model.
            base_model: Folder, URI or Hub name of the base model.
            revision: Branch, tag or commit of a Hub model; empty is its default branch.
            preprocess_settings: The recipe's section preprocess, see PreprocessSettings.
            train_settings: The recipe's section train, fitted to the GPU pool, see TrainSettings.
            merge_settings: The recipe's section merge, see MergeSettings.
            convert_settings: The recipe's section convert, see ConvertSettings.
            evaluate_settings: The recipe's section evaluate, see EvaluateSettings.
            models_uri: Store for the student and the converted base model.
            merged_uri: Folder for the merged model, which is too large for an artifact.
            checkpoints: Durable folder for checkpoints; an interrupted training resumes from it.
            run_uri: Folder for the run's record, scores.json and outcome.json.
            logs_uri: Folder for the steps' logs; empty keeps none.
            answers_uri: Folder that keeps the answers of evaluated models, so that a retry resumes; empty: in the
                folder for logs.
            distill_settings: The recipe's section distill, see DistillSettings; empty without a teacher.
            round_evaluate_settings: EvaluateSettings for the training questions that a student is asked between rounds.
            ledger_uri: Folder or s3:// prefix for the teacher's answers and their cost.
            deploy_settings: The recipe's section deploy, see DeploySettings; empty without deployment.
            data_fingerprint: Fingerprint of the files that preprocess reads; a change makes cached steps run again.
            base_fingerprint: Fingerprint of the base model; a change makes cached steps run again.
            resume_from: Checkpoints of an earlier run that the last or only round's training resumes from.
            resume_rounds_from: The same for the other rounds. It is part of a train step's cache key, so a change for
                the last round does not make the others train again.
            node_selector: Labels of the nodes that train may run on.
            tolerations: Tolerations of train for the taints of those nodes.
            gpu_resource: Kubernetes' resource name of the GPUs.
            gpus: Number of GPUs for train.
            train_image: Image of train, which differs for old GPUs that need an older CUDA.
            price_per_hour: Price of the GPUs of train per hour, for the summary.
        """
        pool = PoolParameters(node_selector, tolerations, gpu_resource, gpus, train_image)

        def add(label: str, task: dsl.PipelineTask, round: int = 0, cache: bool = True) -> dsl.PipelineTask:
            """Name a task and place it; `round` is 0 in the last or only round, which has the plain label."""
            task.set_display_name(f"{label} round {round}" if round else label)
            if not cache:
                task.set_caching_options(False)
            place(label.replace(" ", "-"), task, pool)
            return task

        def train_student(dataset: Any, round: int = 0) -> TrainedStudent:
            """Train a student on a dataset and convert it to GGUF: train -> merge -> convert."""
            trained = train(
                settings=train_settings,
                dataset=dataset,
                base_model=base_model,
                revision=revision,
                base_fingerprint=base_fingerprint,
                checkpoints=checkpoints,
                resume_from=resume_rounds_from if round else resume_from,
                round_number=round,
                logs_uri=logs_uri,
            )
            adapter = add("train", trained, round).outputs["adapter"]
            merged = merge(
                settings=merge_settings,
                base_model=base_model,
                revision=revision,
                adapter=adapter,
                output_uri=merged_uri,
                round_number=round,
                logs_uri=logs_uri,
            )
            add("merge", merged, round)
            converted = convert(
                settings=convert_settings,
                model_uri=merged.outputs["model_uri"],
                provenance=merged.outputs["provenance"],
                dataset=dataset,
                prompt=preprocess_settings,
                models_uri=models_uri,
                name=f"{name}-round-{round}" if round else name,
                version="",
                round_number=round,
                logs_uri=logs_uri,
            )
            add("convert student", converted, round)
            return TrainedStudent(adapter, converted.outputs["Output"])

        def distill_rounds(dataset: Any) -> Any:
            """Return the dataset distilled in the last round.

            After each earlier round a student is trained and asked the training questions; where it fails, the next
            round asks the teacher again. A student that is its own teacher is trained on its answers instead.
            """
            distilled_dataset = dataset
            student_answers: dict[str, Any] = {}
            for number in range(1, students + 1):
                round = number if number < students else 0
                if number > 1 or not is_self:
                    distilled = distill(
                        settings=distill_settings,
                        dataset=dataset,
                        ledger_uri=ledger_uri,
                        round_number=number,
                        data_fingerprint=data_fingerprint,
                        logs_uri=logs_uri,
                        **student_answers,
                    )
                    distilled_dataset = add("distill", distilled, round).outputs["distilled"]
                if round:
                    trained_student = train_student(distilled_dataset, round)
                    evaluated = evaluate(
                        settings=round_evaluate_settings,
                        dataset=distilled_dataset,
                        databases="",
                        adapter=trained_student.adapter,
                        student_uri=trained_student.candidate_uri,
                        base_uri="",
                        round_number=round,
                        logs_uri=logs_uri,
                        answers_uri=answers_uri,
                    )
                    student_answers = {"answers": add("evaluate", evaluated, round).outputs["report"]}
            return distilled_dataset

        recorded = outcome(name=name, run_uri=run_uri, price_per_hour=price_per_hour)
        add("outcome", recorded, cache=False)
        with dsl.ExitHandler(recorded, name="distil"):
            preprocessed = preprocess(
                settings=preprocess_settings, data_fingerprint=data_fingerprint, logs_uri=logs_uri
            )
            dataset = add("preprocess", preprocessed).outputs["dataset"]
            if students:
                dataset = distill_rounds(dataset)
            trained_student = train_student(dataset)
            base = convert(
                settings=convert_settings,
                model_uri=base_model,
                revision=revision,
                fingerprint=base_fingerprint,
                provenance={},
                models_uri=models_uri,
                name=f"{name}-base",
                version="",
                logs_uri=logs_uri,
            )
            # After preprocess, so that wrong paths of the data are reported before a large model is converted.
            add("convert base", base.after(preprocessed))
            evaluated = evaluate(
                settings=evaluate_settings,
                dataset=dataset,
                databases="",
                adapter=trained_student.adapter,
                student_uri=trained_student.candidate_uri,
                base_uri=base.outputs["Output"],
                logs_uri=logs_uri,
                answers_uri=answers_uri,
            )
            report = add("evaluate", evaluated).outputs["report"]
            gated = gate(report=report, candidate_uri=trained_student.candidate_uri, run_uri=run_uri, logs_uri=logs_uri)
            add("gate", gated, cache=False)  # the record is this run's
            if with_deploy:
                deployed = deploy(
                    manifest_uri=gated.outputs["manifest_uri"],
                    manifest_sha256=gated.outputs["manifest_sha256"],
                    settings=deploy_settings,
                    logs_uri=logs_uri,
                )
                add("deploy", deployed, cache=False)  # the release may have changed since

    return distillation
