"""The tokenizer that llama.cpp would use, as tokenizer.json and tokenizer_config.json. Source: src/llama-vocab.cpp."""

import json
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from chatmetrics.components.base_model.from_gguf.gguf_file import GgufFile
from chatmetrics.components.base_model.from_gguf.pre_tokenizers import (
    ALIASES,
    PRE_TOKENIZERS,
    QWEN2,
    WHOLE_WORDS,
    pre_tokenizers,
)
from chatmetrics.components.errors import InputError

SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN)
# Tokens that llama.cpp takes for control tokens, whatever type the file gives them.
ALWAYS_CONTROL_TOKENS = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT>
_<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜>
"""
ALWAYS_CONTROL = frozenset(ALWAYS_CONTROL_TOKENS.split())
NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


class GgufTokenizer:
    """The tokenizer of a GGUF file.

    Attributes:
        tokens: the tokens by id, without the unused ones that only fill up the embedding.
        ids: the ids of the special tokens, by transformers' name: bos_token, eos_token, unk_token, pad_token.
    """

    def __init__(self, model: GgufFile) -> None:
        """Read and check the tokenizer.

        Raises:
            InputError: it is of a kind that is not supported, or damaged.
        """
        self._model = model
        kind = model.value("tokenizer.ggml.model", str)
        if kind != "gpt2":
            raise InputError(
                f"{model.path}: its tokenizer is of the kind {kind}; only byte-level BPE (gpt2) is supported. Name the "
                "folder of the original model"
            )
        given = model.value("tokenizer.ggml.pre", str)
        self.pre_tokenizer = ALIASES.get(given, given)
        if self.pre_tokenizer not in PRE_TOKENIZERS:
            raise InputError(
                f"{model.path}: its pre-tokenizer {given} is not supported, only {', '.join(PRE_TOKENIZERS)}; name the "
                "folder of the original model"
            )
        if model.metadata.get("general.architecture") == "qwen2" and PRE_TOKENIZERS[self.pre_tokenizer] != QWEN2:
            raise InputError(
                f"{model.path}: a qwen2 with the pre-tokenizer {given}; transformers splits it as Qwen2 does. "
                "Name the folder of the original model"
            )
        self._types = self._read_types()
        self.tokens = {
            number: token
            for number, token in enumerate(model.strings("tokenizer.ggml.tokens"))
            if self._types[number] != TokenType.UNUSED
        }
        if len(set(self.tokens.values())) < len(self.tokens):
            raise InputError(f"{model.path}: its vocabulary has a token twice; download the file again")
        self.ids = self._named()
        self._adds_bos = self._adds("bos", self.pre_tokenizer in WHOLE_WORDS)
        self._adds_eos = self._adds("eos", False)

    def files(self) -> dict[str, dict[str, Any]]:
        """The content of tokenizer.json and tokenizer_config.json.

        Raises:
            InputError: vocabulary and merges do not fit together.
        """
        content = self._tokenizer()
        try:
            Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises no other class
            detail = str(error).partition("\n")[0]
            raise InputError(
                f"{self._model.path}: its vocabulary and merges do not fit together ({detail}); download the file again"
            ) from error
        template = self._model.metadata.get("tokenizer.chat_template")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: self.tokens[number] for name, number in self.ids.items()},
            "add_bos_token": self._adds_bos,
            "add_eos_token": self._adds_eos,
            "clean_up_tokenization_spaces": False,
            **({"chat_template": template} if isinstance(template, str) else {}),
        }
        return {"tokenizer.json": content, "tokenizer_config.json": config}

    def end_ids(self) -> list[int]:
        """Ids of the tokens that end an answer, the EOS token first."""
        keys = ("eot", "eom")
        more = [self._model.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in keys]
        return list(dict.fromkeys([self.ids["eos_token"], *(number for number in more if number in self.tokens)]))

    def _read_types(self) -> list[int]:
        count = len(self._model.strings("tokenizer.ggml.tokens"))
        types = self._model.value("tokenizer.ggml.token_type", list, [TokenType.NORMAL] * count)
        if len(types) < count or not all(isinstance(type, int) for type in types):
            raise InputError(f"{self._model.path}: it lacks the types of some tokens; download the file again")
        return [int(type) for type in types]

    def _is_special(self, number: int) -> bool:
        return self._types[number] in SPECIAL or self.tokens[number] in ALWAYS_CONTROL

    def _named(self) -> dict[str, int]:
        ids = {name: self._model.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in NAMED.items()}
        # One that is an ordinary token for llama.cpp must not become a special one.
        found = {name: number for name, number in ids.items() if number in self.tokens and self._is_special(number)}
        if "eos_token" not in found:
            raise InputError(
                f"{self._model.path}: it names no control token as EOS token, so the model could not learn to end its "
                "answers; name the folder of the original model"
            )
        return found

    def _adds(self, which: str, default: bool) -> bool:
        adds = self._model.value(f"tokenizer.ggml.add_{which}_token", bool, default)
        if adds and f"{which}_token" not in self.ids:
            raise InputError(
                f"{self._model.path}: its tokenizer adds a {which.upper()} token, but names no control token as such; "
                "name the folder of the original model"
            )
        return adds

    def _tokenizer(self) -> dict[str, Any]:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        vocabulary = {token: number for number, token in self.tokens.items()}
        parts = pre_tokenizers(self.pre_tokenizer, vocabulary)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added_tokens(),
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "post_processor": self._post_processor() or byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.pre_tokenizer in WHOLE_WORDS,
                "vocab": vocabulary,
                "merges": self._model.strings("tokenizer.ggml.merges"),
            },
        }

    def _added_tokens(self) -> list[dict[str, Any]]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return [
            {"id": number, "content": token, **flags, "special": self._is_special(number)}
            for number, token in self.tokens.items()
            if self._is_special(number) or self._types[number] == TokenType.USER_DEFINED
        ]

    def _post_processor(self) -> dict[str, Any] | None:
        """The part of tokenizer.json that adds BOS and EOS; None if none is added."""
        names = {"bos_token": self._adds_bos, "eos_token": self._adds_eos}
        added = {name: self.tokens[self.ids[name]] for name, is_added in names.items() if is_added}
        if not added:
            return None

        def sequence(which: str, type_id: int) -> list[dict[str, Any]]:
            special = {name: [{"SpecialToken": {"id": token, "type_id": type_id}}] for name, token in added.items()}
            text = [{"Sequence": {"id": which, "type_id": type_id}}]
            return [*special.get("bos_token", ()), *text, *special.get("eos_token", ())]

        return {
            "type": "TemplateProcessing",
            "single": sequence("A", 0),
            "pair": [*sequence("A", 0), *sequence("B", 1)],
            "special_tokens": {
                token: {"id": token, "ids": [self.ids[name]], "tokens": [token]} for name, token in added.items()
            },
        }
