"""Trains pipelines/demo/base_model: a Qwen2 with 4.5 million parameters, trained on `corpus.py` only.

    python -m chatmetrics.pipelines.demo.train_base --output pipelines/demo/base_model --minutes 40

The model in the repository was trained by this command on two cores, in 3,674 steps. The tokenizer is a byte-level BPE
with the splitting, special tokens and chat template of DeepSeek-R1-Distill-Qwen, so that the demo takes the same path
as the 7B. Each common Chinese character is one token, so that a name has the same tokens in question and SQL.
"""

import argparse
import copy
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from chatmetrics.components.console import Progress
from chatmetrics.components.nl2sql.prompts.prompt import instruction
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3
from chatmetrics.pipelines.demo.corpus import COMMON_CHARACTERS, questions
from chatmetrics.pipelines.demo.induction import start_with_induction

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL = [BOS, EOS, "<｜User｜>", "<｜Assistant｜>", PAD]
VOCABULARY = 5120
CONTEXT = 2048
# The splitting of Qwen2 and DeepSeek-R1-Distill-Qwen; every digit is a token of its own.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content }}"
    "{% elif message.role == 'user' %}<｜User｜>{{ message.content }}{% else %}<｜Assistant｜>{{ message.content }}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def train_tokenizer(output: Path, seed: int) -> Tokenizer:
    """Train the BPE on the corpus and write tokenizer.json and tokenizer_config.json."""
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = Tokenizer(_with_characters(_bpe_of_words(split, byte_level, seed)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, _id(tokenizer, BOS))]
    )
    tokenizer.save(str(output / "tokenizer.json"))
    config = {
        "backend": "tokenizers",
        "tokenizer_class": "TokenizersBackend",
        "unk_token": None,  # otherwise transformers adds one, which does not fit into the model's vocabulary
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n")
    return tokenizer


def _bpe_of_words(split: pre_tokenizers.Split, byte_level: pre_tokenizers.ByteLevel, seed: int) -> dict[str, Any]:
    """Vocabulary and merges for the corpus without Chinese; the rest of the vocabulary is for the characters."""
    characters = pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="removed")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([characters, split, byte_level])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(_character_merges()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (
        f"{instruction(name)}\n{question} {sql}" for name, question, sql in itertools.islice(questions(seed), 20000)
    )
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def _with_characters(words: dict[str, Any]) -> models.BPE:
    """Return the BPE with one more token for each common Chinese character."""
    merges = [*map(tuple, words["merges"]), *_character_merges()]
    tokens = [*sorted(words["vocab"], key=words["vocab"].get), *("".join(merge) for merge in _character_merges())]
    return models.BPE({token: number for number, token in enumerate(tokens)}, merges)


def _character_merges() -> list[tuple[str, str]]:
    """Merges of the three bytes of each common character: first two of them, then the third."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelled = [tuple(byte_level.pre_tokenize_str(character)[0][0]) for character in COMMON_CHARACTERS]
    pairs = dict.fromkeys((first, second) for first, second, _ in spelled)
    return [*pairs, *((first + second, third) for first, second, third in spelled)]


def new_model(tokenizer: Tokenizer) -> Qwen2ForCausalLM:
    """Return an untrained Qwen2; every dimension is a multiple of 256, as K-quants require."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model = Qwen2ForCausalLM(config)
    start_with_induction(model)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    return model


def batches(tokenizer: Tokenizer, seed: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield input ids and labels, both [size, length], of examples of similar length.

    Labels are -100 outside the answer.
    """
    eos, pad = _id(tokenizer, EOS), _id(tokenizer, PAD)
    stream = questions(seed)
    while True:
        examples = []
        for name, question, sql in itertools.islice(stream, size * 16):
            prompt = tokenizer.encode(DEEPSEEK3.prompt("", instruction(name), question)).ids
            examples.append((prompt, [*tokenizer.encode(sql, add_special_tokens=False).ids, eos]))
        examples.sort(key=lambda example: len(example[0]) + len(example[1]))
        for index in torch.randperm(16).tolist():
            yield padded(examples[index * size : (index + 1) * size], pad)


def padded(examples: list[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input ids and labels of a batch of (prompt, answer), both [examples, length]."""
    length = max(len(prompt) + len(answer) for prompt, answer in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), -100)
    for row, (prompt, answer) in enumerate(examples):
        ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def _id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    assert number is not None, token
    return number


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the answer tokens; the language-model head computes only their positions."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    is_answer = labels[:, 1:] != -100
    return cross_entropy(model.lm_head(hidden[is_answer]), labels[:, 1:][is_answer])


def main() -> None:
    """Train and write the base model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time, even before --steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    # Adam's second moments of rare tokens become denormal numbers, on which CPUs are a hundred times slower.
    torch.set_flush_denormal(True)
    torch.manual_seed(arguments.seed)
    tokenizer = train_tokenizer(arguments.output, arguments.seed + 1)
    model = new_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    progress = Progress("base", arguments.steps, "steps")
    started = time.monotonic()
    for step, (ids, labels) in enumerate(batches(tokenizer, arguments.seed, arguments.batch_size), start=1):
        # The cosine schedule follows steps or time, whichever is further, so that a run ended by --minutes decays too.
        done = max(step / arguments.steps, (time.monotonic() - started) / (60 * arguments.minutes))
        warm = min(1.0, step / 100)
        for group in optimizer.param_groups:
            group["lr"] = (
                arguments.learning_rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
            )
        loss = loss_of(model, ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.update(step, f"loss {loss.item():.3f}, {ids.numel()} tokens")
        if step % 500 == 0 or done >= 1:
            copy.deepcopy(model).half().save_pretrained(arguments.output)
        if done >= 1:
            break


if __name__ == "__main__":
    main()
