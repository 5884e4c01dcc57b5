"""Loads a model with transformers, which only reports weights that it does not find, and makes that an error."""

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from chatmetrics.components.base_model.on_meta import check_loaded


def load_complete(folder: Path, **options: Any) -> PreTrainedModel:
    """Load a model that has passed `check_base_model`.

    Args:
        folder: its folder.
        options: more arguments of `from_pretrained`.

    Raises:
        InputError: a weight is not from the checkpoint; it would be random.
    """
    model: PreTrainedModel
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    check_loaded(folder, model, found)
    return model


def has_tied_head(model: PreTrainedModel) -> bool:
    """Whether the head's weights are the embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight
