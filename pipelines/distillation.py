"""The one DAG: data in, a scored and published model out, served if wanted. It runs here as it runs on a cluster.

Its length depends on the recipe: with a teacher there is a step distill before train, with several rounds that part is
there as often, and it ends with deploy where that is enabled.
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
class PoolChannels:
    """The pipeline's parameters that say where train runs; see pipelines/pools.py for the values."""

    node_selector: Any
    tolerations: Any
    gpu_resource: Any
    gpus: Any
    image: Any


# What a cluster adds to a task, by the name of its step; on one machine there is nothing to add.
Place = Callable[[str, dsl.PipelineTask, PoolChannels], object]


def distillation_pipeline(
    place: Place = lambda step, task, pool: None, with_deploy: bool = False, rounds: int = 0
) -> BaseComponent:
    """The DAG, each of its tasks handed to `place` once it is there.

    Args:
        place: what a cluster adds to a task.
        with_deploy: whether it ends by serving the model in the cluster; on one machine there is no such task.
        rounds: how often the teacher is asked and a student trained; 0 where there is no teacher.
    """

    @dsl.pipeline(name="distillation", description="From questions and SQL to a small model that writes SQL.")
    def distillation(
        name: str,
        base_model: str,
        revision: str,
        preprocess_settings: dict[str, Any],
        train_settings: dict[str, Any],
        merge_settings: dict[str, Any],
        convert_settings: dict[str, Any],
        evaluate_settings: dict[str, Any],
        models_uri: str,
        merged_uri: str,
        checkpoints: str,
        run_uri: str,
        logs_uri: str = "",
        distill_settings: dict[str, Any] = {},  # noqa: B006 (KFP wants a constant)
        round_evaluate_settings: dict[str, Any] = {},  # noqa: B006
        ledger_uri: str = "",
        deploy_settings: dict[str, Any] = {},  # noqa: B006
        data_fingerprint: str = "",
        base_fingerprint: str = "",
        resume_from: str = "",
        node_selector: dict[str, Any] = {},  # noqa: B006
        tolerations: list[Any] = [],  # noqa: B006
        gpu_resource: str = "nvidia.com/gpu",
        gpus: str = "0",
        train_image: str = "",
        price_per_hour: float = 0.0,
    ) -> None:
        """Distil an NL2SQL ability into a copy of the base model.

        Args:
            name: of the published model.
            base_model: a folder, URI or Hub name.
            revision: branch, tag or commit of a Hub name; empty is its default branch.
            preprocess_settings: the recipe's section of that name, as are the next ones.
            train_settings: see TrainSettings.
            merge_settings: see MergeSettings.
            convert_settings: see ConvertSettings.
            evaluate_settings: see EvaluateSettings.
            models_uri: store that student and base are kept in.
            merged_uri: folder for the merged model, which is too large for an artifact.
            checkpoints: durable folder of this training; an interrupted one goes on from there.
            run_uri: store for the run's record: scores.json, outcome.json.
            logs_uri: store for the steps' logs; empty keeps none.
            distill_settings: see DistillSettings; empty where there is no teacher.
            round_evaluate_settings: see EvaluateSettings; how a student is asked the training questions between rounds.
            ledger_uri: folder or s3:// prefix of the teacher's answers and what was paid for them.
            deploy_settings: see DeploySettings; empty where the DAG ends with the published model.
            data_fingerprint: of the files that preprocess reads, so that cached steps run again when they change.
            base_fingerprint: of the base model, likewise.
            resume_from: checkpoints of an earlier run that training goes on from.
            node_selector: labels of the nodes that train may run on; this and the next ones mean something on a
                cluster only.
            tolerations: of train, for the taints of those nodes.
            gpu_resource: what Kubernetes calls the GPUs.
            gpus: how many of them train asks for.
            train_image: of train, which differs where an older GPU needs an older CUDA.
            price_per_hour: of one such node, for the summary.
        """
        pool = PoolChannels(node_selector, tolerations, gpu_resource, gpus, train_image)

        def named(step: str, task: dsl.PipelineTask, round: int, label: str = "") -> dsl.PipelineTask:
            """Give a task its name, with its round unless that is the last, and hand it to `place`."""
            label = label or step
            task.set_display_name(f"{label} round {round}" if round else label)
            place(step, task, pool)
            return task

        def lesson(number: int, probed: dict[str, Any]) -> Any:
            """What the student learns in a round: what the teacher answered, as far as it is right."""
            task = distill(
                settings=distill_settings,
                dataset=data.outputs["dataset"],
                ledger_uri=ledger_uri,
                round_number=number,
                data_fingerprint=data_fingerprint,
                logs_uri=logs_uri,
                **probed,
            )
            return named("distill", task, number if number < rounds else 0).outputs["distilled"]

        def pupil(dataset: Any, round: int = 0) -> tuple[Any, dsl.PipelineTask]:
            """The adapter that a dataset makes of the base model, and the task that has the student as GGUF."""
            trained = train(
                settings=train_settings,
                dataset=dataset,
                base_model=base_model,
                revision=revision,
                base_fingerprint=base_fingerprint,
                checkpoints=checkpoints,
                resume_from=resume_from,
                round_number=round,
                logs_uri=logs_uri,
            )
            named("train", trained, round)
            merged = merge(
                settings=merge_settings,
                base_model=base_model,
                revision=revision,
                adapter=trained.outputs["adapter"],
                output_uri=merged_uri,
                round_number=round,
                logs_uri=logs_uri,
            )
            named("merge", merged, round)
            student = convert(
                settings=convert_settings,
                model_uri=merged.outputs["model_uri"],
                provenance=merged.outputs["provenance"],
                prompt=preprocess_settings,
                models_uri=models_uri,
                name=f"{name}-round-{round}" if round else name,
                version="",
                round_number=round,
                logs_uri=logs_uri,
            )
            return trained.outputs["adapter"], named("convert-student", student, round, "convert student")

        def probe(dataset: Any, adapter: Any, student: dsl.PipelineTask, round: int) -> Any:
            """How a student does on the questions that it was trained on."""
            task = evaluate(
                settings=round_evaluate_settings,
                dataset=dataset,
                databases="",
                adapter=adapter,
                student_uri=student.outputs["Output"],
                base_uri="",
                round_number=round,
                logs_uri=logs_uri,
            )
            return named("evaluate", task, round).outputs["report"]

        ending = outcome(name=name, run_uri=run_uri, price_per_hour=price_per_hour)
        ending.set_caching_options(False)
        place("outcome", ending, pool)
        with dsl.ExitHandler(ending, name="distil"):
            data = preprocess(settings=preprocess_settings, data_fingerprint=data_fingerprint, logs_uri=logs_uri)
            place("preprocess", data, pool)
            dataset: Any = data.outputs["dataset"]
            probed: dict[str, Any] = {}
            for number in range(1, rounds):
                dataset = lesson(number, probed)
                adapter, student = pupil(dataset, number)
                probed = {"answers": probe(dataset, adapter, student, number)}
            if rounds:
                dataset = lesson(rounds, probed)
            adapter, student = pupil(dataset)
            # After the data, so that a wrong path is found before a large base is converted.
            base = (
                convert(
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
                .set_display_name("convert base")
                .after(data)
            )
            place("convert-base", base, pool)
            scored = evaluate(
                settings=evaluate_settings,
                dataset=dataset,
                databases="",
                adapter=adapter,
                student_uri=student.outputs["Output"],
                base_uri=base.outputs["Output"],
                logs_uri=logs_uri,
            )
            named("evaluate", scored, round=0)
            gated = gate(
                report=scored.outputs["report"],
                candidate_uri=student.outputs["Output"],
                run_uri=run_uri,
                logs_uri=logs_uri,
            )
            gated.set_caching_options(False)  # the record is this run's
            place("gate", gated, pool)
            if with_deploy:
                served = deploy(manifest_uri=gated.output, settings=deploy_settings, logs_uri=logs_uri)
                served.set_caching_options(False)  # what serves may have changed since
                place("deploy", served, pool)

    return distillation
