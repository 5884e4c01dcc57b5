"""Random base models: Qwen2 architecture, DeepSeek-R1-Distill-Qwen's prompt format.

    python -m tests.models FOLDER --tokenizer FOLDER_OF_DEEPSEEK_R1_DISTILL_QWENS_TOKENIZER

writes one with that tokenizer, to test the steps of the 7B model on a small machine.
"""

import argparse
import json
import shutil
from pathlib import Path

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
SPECIAL_TOKENS = [EOS, USER, ASSISTANT, BOS, PAD]

# The pattern of DeepSeek-R1-Distill-Qwen's tokenizer.json; each digit is a separate token.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "Using the database 'hotel', translate the following natural language question into a SQL query.",
    "CREATE TABLE hotel (id INTEGER PRIMARY KEY, name TEXT, rating REAL);",
    "SELECT name, COUNT(*) FROM hotel JOIN city ON hotel.city_id = city.id WHERE city.name = '上海' GROUP BY name",
    "How many hotels are there in 上海? 上海浦东新区评分前10的酒店订单量",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}"
    f"{USER}{{{{ message.content }}}}{{% elif message.role == 'assistant' %}}"
    f"{ASSISTANT}{{{{ message.content }}}}{EOS}{{% else %}}{{{{ message.content }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def tiny_base(folder: Path, vocabulary: int = 400, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Qwen2 model with its own byte-level BPE into `folder` and return the folder.

    The files are those of DeepSeek-R1-Distill-Qwen: config.json, generation_config.json, model.safetensors (fp32),
    tokenizer.json, tokenizer_config.json (add_bos_token, a pad token that is not EOS) and chat_template.jinja.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ids = _write_tokenizer(folder, vocabulary)
    _write_model(folder, ids, max(ids.values()) + 1, hidden, layers, seed)
    return folder


def random_base(folder: Path, tokenizer: Path, hidden: int = 64, layers: int = 2, seed: int = 0) -> Path:
    """Write a random Qwen2 model with DeepSeek-R1-Distill-Qwen's own tokenizer into `folder` and return the folder.

    Args:
        folder: created if it does not exist.
        tokenizer: folder of tokenizer.json, tokenizer_config.json and chat_template.jinja.
        hidden: width. With the vocabulary of 152,064 tokens, the two embeddings are nearly all of the model.
        layers: number of layers.
        seed: seed of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer / name, folder / name)
    added = json.loads((tokenizer / "tokenizer.json").read_bytes())["added_tokens"]
    ids = {token["content"]: token["id"] for token in added}
    _write_model(folder, ids, 152064, hidden, layers, seed)
    return folder


def _write_model(folder: Path, ids: dict[str, int], vocabulary: int, hidden: int, layers: int, seed: int) -> None:
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids.get(PAD, ids[EOS]),
        initializer_range=0.1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
        pad_token_id=ids.get(PAD, ids[EOS]),
        do_sample=True,
        temperature=0.6,
        top_p=0.95,
    )
    model.save_pretrained(folder)


def _write_tokenizer(folder: Path, vocabulary: int) -> dict[str, int]:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, ids[BOS])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False, indent=2), "utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, "utf-8")
    return ids


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    arguments = parser.parse_args()
    print(random_base(arguments.folder, arguments.tokenizer))
