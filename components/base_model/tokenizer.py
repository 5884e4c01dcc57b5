"""Checks of a model's tokenizer: its files, its ids against the rows of the embedding, and its EOS token."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatmetrics.components import console
from chatmetrics.components.base_model.config import text_config
from chatmetrics.components.base_model.files import check_kind, listed, optional_object, present, read_object
from chatmetrics.components.base_model.tensors import Tensor
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.prompts.prompt_text import forms_special_token
from chatmetrics.components.nl2sql.prompts.special_tokens import special_tokens

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
LISTS_OF_SPECIAL = ("additional_special_tokens", "extra_special_tokens")


def check_tokenizer(folder: Path, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Check the tokenizer's files, without transformers. Returns the ids of its tokens.

    A pad token is not required: training, serving and conversion need none.

    Raises:
        InputError: a file is missing or damaged, a token has no row in the embedding, or there is no EOS token.
        StorageError: a file cannot be read.
    """
    path = folder / "tokenizer.json"
    if not present(path):
        raise InputError(f"{path}: no such file; name a base model with a fast tokenizer")
    content = read_object(path)
    settings = read_object(folder / "tokenizer_config.json")
    if present(folder / "tokenizer.model"):
        check_kind(folder / "tokenizer.model")
    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
        ids = dict(tokenizer.get_vocab(with_added_tokens=True))
    except Exception as error:  # the library raises no other class
        raise InputError(f"{path}: not a tokenizer ({_first_line(error)}); copy the model again") from error
    if not ids:
        raise InputError(f"{path}: a tokenizer without tokens; copy the model again")
    rows = _rows(config, tensors)
    ignored = _ignored(folder, content, settings)
    check_ids(path, {token: number for token, number in ids.items() if token not in ignored}, rows)
    for name, more in _added_tokens(folder, settings).items():
        check_ids(folder / name, {token: number for token, number in more.items() if token not in ignored}, rows)
    if beyond := [token for token in ignored if rows and ids.get(token, 0) >= rows]:
        console.note(f"{path}: the model has no row for {listed(beyond)}; it must not occur in texts")
    special = [item["content"] for item in content.get("added_tokens", ()) if item.get("special")]
    kept_out = special_tokens(folder, tokenizer)
    if formed := [repr(token) for token in special if forms_special_token(token, kept_out)]:
        console.warning(
            f"{path}: a question or a value that contains {listed(formed)} puts a special token into the prompt; do "
            "not serve this model to people whom you do not trust"
        )
    eos = _text(settings.get("eos_token")) or _text(
        optional_object(folder / "special_tokens_map.json").get("eos_token")
    )
    if eos and eos not in ids:
        raise InputError(
            f"{folder / 'tokenizer_config.json'}: its eos_token {eos!r} is not a token of tokenizer.json, so the model "
            "never learned it; name the token that ends the model's answers"
        )
    # transformers gives a special token that tokenizer.json does not have the next free id.
    missing = dict.fromkeys(token for token in _special_tokens(settings) if token not in ids)
    check_ids(
        folder / "tokenizer_config.json", {t: max(ids.values()) + n for n, t in enumerate(missing, start=1)}, rows
    )
    return ids


def check_ids(path: Path, ids: Mapping[str, int], rows: int) -> None:
    """Check that each token has a row in the embedding of `rows` rows; 0 if their number is unknown.

    Raises:
        InputError: one has none; names it and the file that defines it.
    """
    beyond = sorted((number, token) for token, number in ids.items() if rows and number >= rows)
    if beyond:
        number, token = beyond[0]
        more = f" (and {len(beyond) - 1} more tokens)" if len(beyond) > 1 else ""
        raise InputError(
            f"{path}: token {token!r} has the id {number}{more}, but the model's embedding has only {rows} rows; "
            "remove the token, or enlarge the model with resize_token_embeddings and save it"
        )


def no_eos(folder: Path, config: Mapping[str, Any], ids: Mapping[str, int]) -> InputError:
    """The error for a tokenizer without EOS token, with the token that generation_config.json or config.json names."""
    tokens = {number: token for token, number in ids.items()}
    found = optional_object(folder / "generation_config.json").get("eos_token_id") or config.get("eos_token_id")
    candidates = [tokens[number] for number in (found if isinstance(found, list) else [found]) if number in tokens]
    hint = (
        f"; the model's configuration ends answers with {listed([repr(it) for it in candidates])}" if candidates else ""
    )
    return InputError(
        f"{folder / 'tokenizer_config.json'}: the tokenizer has no EOS token, so the model could not learn to end its "
        f"answers; name it as eos_token{hint}"
    )


def _rows(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
    for name, tensor in tensors.items():
        if EMBEDDING.search(name) and len(tensor.shape) == 2:
            return tensor.shape[0]
    size = text_config(config).get("vocab_size", config.get("vocab_size"))
    return size if isinstance(size, int) else 0


def _ignored(folder: Path, tokenizer: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Special tokens that may lack a row, such as Gemma 3 1B's image token.

    llama.cpp's converter leaves them out if the tokenizer is a SentencePiece model.
    """
    if not present(folder / "tokenizer.model"):
        return []
    used = {_text(settings.get(name)) for name in ("bos_token", "eos_token")}
    added = [token["content"] for token in tokenizer.get("added_tokens", ()) if token.get("special")]
    return [token for token in added if token not in used]


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Tokens that are added to those of tokenizer.json, by the file that defines them."""
    decoder = settings.get("added_tokens_decoder")
    found: dict[str, dict[str, int]] = {"tokenizer_config.json": {}}
    for number, token in (decoder if isinstance(decoder, dict) else {}).items():
        if str(number).isdigit() and (text := _text(token)):
            found["tokenizer_config.json"][text] = int(number)
    added = optional_object(folder / "added_tokens.json")
    return {**found, "added_tokens.json": {token: number for token, number in added.items() if isinstance(number, int)}}


def _special_tokens(settings: dict[str, Any]) -> Iterable[str]:
    values = [settings.get(name) for name in SPECIAL]
    for name in LISTS_OF_SPECIAL:
        more = settings.get(name)
        values += list(more.values()) if isinstance(more, dict) else more if isinstance(more, list) else []
    return (text for value in values if (text := _text(value)))


def _text(token: Any) -> str:
    """A token, which is a string or an object with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
