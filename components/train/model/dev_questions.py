"""Measures a model on dev questions during training: the loss of their gold answers, or its execution accuracy."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase

from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.answers.extraction import sql_from_answer
from chatmetrics.components.nl2sql.databases.databases import Databases, open_databases
from chatmetrics.components.nl2sql.example import Example, read_examples
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, dataset_template
from chatmetrics.components.nl2sql.verdict import StrictVerdict
from chatmetrics.components.storage.dataset_databases import located_databases
from chatmetrics.components.train.data.tokenization import ends_of_answers, tokenize
from chatmetrics.components.train.data.trees import cheapest_parts, tree_pack
from chatmetrics.components.train.model.answer_loss import mixed_precision, own_forward, set_attention
from chatmetrics.components.train.model.nan_loss import plain_losses
from chatmetrics.components.train.settings import TrainSettings

DevMetric = Callable[[PeftModel], float]
# Maximum length of an answer, relative to the longest gold answer, reasoning included. A correct answer is seldom
# longer, and wrong ones that would never end are cut soon.
MAX_RELATIVE_LENGTH = 1.5
PROMPTS_AT_ONCE = 8
QUERY_SECONDS = 5.0


@contextmanager
def dev_metric(settings: TrainSettings, dataset: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[DevMetric]:
    """Yield the function that measures a model on dev questions, as the settings of early stopping say.

    For accuracy the questions' databases are open while the block lasts.

    Args:
        settings: the recipe's `train` section.
        dataset: folder with dev.jsonl and, for accuracy, a dataset card that names the databases' location.
        tokenizer: the base's tokenizer.

    Raises:
        InputError: there are no dev questions, or one of them or its database cannot be used.
        StorageError: the databases cannot be fetched.
    """
    examples = dev_questions(settings, dataset)
    template = dataset_template(dataset)
    tokens = list(tokenize(examples, tokenizer, template))
    if settings.early_stopping == "accuracy":
        wanted = {example.db_id for example in examples}
        with (
            located_databases(dataset, wanted=wanted.__contains__) as where,
            open_databases(where, QUERY_SECONDS) as databases,
        ):
            for db_id in sorted(wanted):  # now, rather than at the first measurement
                databases.check(db_id)
            longest = max(len(item.ids) - item.prompt_length for item in tokens)
            yield partial(
                execution_accuracy,
                tokenizer=tokenizer,
                template=template,
                examples=examples,
                databases=databases,
                answer_tokens=int(MAX_RELATIVE_LENGTH * longest),
            )
        return
    packs = [tree_pack(part) for part in cheapest_parts(tokens, settings.cutoff_length, lambda size: 100 + size)]

    def loss(model: PeftModel) -> float:
        with _evaluating(model):
            return float(torch.cat([plain_losses(model)(pack) for pack in packs]).mean())

    yield loss


def dev_questions(settings: TrainSettings, dataset: Path) -> list[Example]:
    """The dev questions that choose the adapter, the same for equal settings.

    Raises:
        InputError: there are no dev questions, or one of them cannot be used.
    """
    path = dataset / "dev.jsonl"
    questions = read_examples(path)
    if not questions:
        raise InputError(f"{path}: contains no questions, which train.early_stopping needs; set it to none")
    return random.Random(settings.seed).sample(questions, min(len(questions), settings.evaluation_questions))


def execution_accuracy(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    examples: Sequence[Example],
    databases: Databases,
    answer_tokens: int,
) -> float:
    """The share of questions whose greedy answer, executed on their database, has the strict verdict "right".

    Raises:
        InputError: a database cannot be used.
    """
    texts = answers(model, tokenizer, template, examples, answer_tokens)
    right = [_is_right(example, text, databases) for example, text in zip(examples, texts, strict=True)]
    return sum(right) / len(right)


def answers(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    examples: Sequence[Example],
    answer_tokens: int,
) -> list[str]:
    """The model's greedy answers to the questions, each of at most `answer_tokens` tokens."""
    config = GenerationConfig(
        max_new_tokens=answer_tokens,
        do_sample=False,
        repetition_penalty=1.0,  # values not given here come from the base's generation_config.json
        eos_token_id=ends_of_answers(tokenizer, template),
        pad_token_id=tokenizer.pad_token_id,
    )
    texts: list[str] = []
    with _evaluating(model), _generating(model):
        for first in range(0, len(examples), PROMPTS_AT_ONCE):
            batch = examples[first : first + PROMPTS_AT_ONCE]
            prompts = [template.prompt(example.system, example.instruction, example.input) for example in batch]
            inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt").to(model.device)
            output = model.generate(**inputs, generation_config=config)
            texts += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def _is_right(example: Example, text: str, databases: Databases) -> bool:
    execute = partial(databases.execute, example.db_id)
    sql = sql_from_answer(text)
    with databases.snapshot([example.db_id]):
        gold, predicted = execute([example.sql, sql])
        return StrictVerdict(example.question, example.sql, gold, execute).is_right(sql, predicted)


@contextmanager
def _evaluating(model: PeftModel) -> Iterator[None]:
    """Evaluation mode, in the precision of the training: Trainer's autocast does not cover what callbacks compute."""
    training = model.training
    model.eval()
    with torch.no_grad(), mixed_precision(model.get_base_model()):
        yield
    model.train(training)


@contextmanager
def _generating(model: PeftModel) -> Iterator[None]:
    """Give the model the forward of its class, which returns logits, and SDPA: FlexAttention is compiled for trees."""
    base = model.get_base_model()
    attention = base.config._attn_implementation
    if attention == "flex_attention" and not set_attention(base, "sdpa"):
        set_attention(base, "eager")
    try:
        with own_forward(base):
            yield
    finally:
        base.set_attn_implementation(attention)
