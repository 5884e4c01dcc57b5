"""Estimates what the steps after train take: cores, memory, disk and hours.

Everything is counted: the bytes that a step reads and writes, the operations per token, and the weights that are read
for each token of an answer. What one core, disk or GPU does in a second is a constant below or a key of its pool.
"""

from dataclasses import dataclass, replace

from kubernetes.utils.quantity import parse_quantity

from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.pipelines.estimate import SPIDER_QUESTIONS
from chatmetrics.pipelines.pools import Pool
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import GGUF_BYTES, Requests, requests_of

# Spider's dev questions; mean tokens of a prompt by form of schema, and of an answer. Counted as in estimate.py.
SPIDER_DEV_QUESTIONS = 1_034
SPIDER_PROMPT_TOKENS = {"none": 36, "ddl": 359, "m-schema": 785}
SPIDER_ANSWER_TOKENS = 37
# Of one core, with llama.cpp: operations per second while it reads a prompt, and bytes of weights per second while it
# writes an answer. From the CPU time of its server with a Q4_1 model of 135M parameters: 4.6 ms per token of a prompt,
# 9.8 ms per token of an answer.
CORE_FLOPS = 50e9
CORE_BYTES = 10e9
# Of a pod's disk or network, per second: what a volume of the large clouds gives.
DISK_BYTES = 200e6
HALF = 2  # bytes of a weight


@dataclass(frozen=True)
class Questions:
    """What evaluate asks.

    Attributes:
        number: number of questions.
        prompt_tokens: mean tokens of a prompt.
        answer_tokens: mean tokens of a right answer.
    """

    number: int
    prompt_tokens: float
    answer_tokens: float


@dataclass(frozen=True)
class StepEstimate:
    """One step's pod.

    Attributes:
        cores: CPU cores requested.
        memory: bytes of memory requested.
        disk: bytes of disk needed; 0 if the step needs little.
        hours: at most this long; 0 if it is not estimated here.
    """

    cores: float
    memory: float
    disk: float
    hours: float


def step_estimates(
    recipe: Recipe, sizes: Sizes, placed: dict[str, Pool], questions: Questions | None = None
) -> dict[str, StepEstimate]:
    """Estimate the steps that read or write a model, by name.

    Args:
        recipe: the recipe.
        sizes: layer sizes of the base model.
        placed: the pools of the steps in `cluster.pools`.
        questions: the questions of a dataset; None: questions like Spider's dev set are assumed.
    """
    weights = sizes.parameters * HALF
    gguf = sizes.parameters * GGUF_BYTES[recipe.convert.quantization]
    asked = _asked(recipe, questions)
    requests = requests_of(recipe)
    cores = float(parse_quantity(requests["evaluate"].cpu))
    fetching = 2 * gguf / DISK_BYTES
    seconds = {
        "train": 0.0,
        # Fetches the base, reads it, writes the merged model, and publishes that.
        "merge": 4 * weights / DISK_BYTES,
        # Fetches and reads the model, writes and reads an unquantized GGUF, writes and publishes the quantized one.
        "convert": (4 * weights + 2 * gguf) / DISK_BYTES,
        "evaluate": fetching + _asking_seconds(recipe, recipe.evaluate, sizes, asked, cores, placed),
    }
    if recipe.distill.students > 1:
        settings = recipe.evaluate.model_copy(update=recipe.round_evaluation())
        of_round = replace(asked, number=settings.limit or SPIDER_QUESTIONS)
        taken = _asking_seconds(recipe, settings, sizes, of_round, cores, placed)
        seconds["evaluate round"] = fetching / 2 + taken
    return {step: _pod(requests[step.partition(" ")[0]], taken) for step, taken in seconds.items()}


def _pod(requests: Requests, seconds: float) -> StepEstimate:
    return StepEstimate(
        cores=float(parse_quantity(requests.cpu)),
        memory=float(parse_quantity(requests.memory)),
        disk=float(parse_quantity(requests.disk or "0")),
        hours=seconds / 3600,
    )


def _asked(recipe: Recipe, questions: Questions | None) -> Questions:
    form = recipe.preprocess.schema_form
    found = questions or Questions(SPIDER_DEV_QUESTIONS, SPIDER_PROMPT_TOKENS[form], SPIDER_ANSWER_TOKENS)
    settings = recipe.evaluate
    drawn = int(settings.sample.rpartition(":")[2] or found.number)
    number = min(found.number, drawn, settings.limit or found.number)
    return Questions(number, found.prompt_tokens, found.answer_tokens)


def _asking_seconds(
    recipe: Recipe, settings: EvaluateSettings, sizes: Sizes, asked: Questions, cores: float, placed: dict[str, Pool]
) -> float:
    """Duration of asking all questions: the student, its sampled answers and the base model.

    A base model that was not trained for it may think until `max_tokens`.
    """
    flops, bandwidth = cores * CORE_FLOPS, cores * CORE_BYTES
    pool = placed.get("evaluate")
    if pool and pool.runs_on_gpu("evaluate") and pool.peak_tflops and pool.memory_gb_per_second:
        flops, bandwidth = pool.peak_tflops * 1e12 * pool.utilization, pool.memory_gb_per_second * 1e9
    layers = sizes.layers * sizes.layer_weights
    prompt = 2 * asked.prompt_tokens * layers * (1 + asked.prompt_tokens / sizes.attention_tokens) / flops
    weights = (layers + sizes.vocabulary * sizes.hidden) * GGUF_BYTES[recipe.convert.quantization]
    # Answers to several requests are written together, so that the weights are read once for all of them.
    token = max(weights / bandwidth / settings.concurrency, 2 * (layers + sizes.vocabulary * sizes.hidden) / flops)
    student = prompt + (1 + settings.sampled_answers) * asked.answer_tokens * token
    base = prompt + settings.max_tokens * token if settings.score_base else 0.0
    return asked.number * (student + base)
