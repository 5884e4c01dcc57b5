"""The layer sizes of a base model, from its config.json; the estimate of training memory and hours needs them."""

import json
import os
from collections.abc import Mapping
from typing import Any

import httpx

from chatmetrics.components import console
from chatmetrics.components.base_model.references import as_folder
from chatmetrics.components.credentials import bearer, read_secret, tls_context
from chatmetrics.components.errors import InputError, StorageError
from chatmetrics.components.responder import UnexpectedAnswer, checked_json
from chatmetrics.components.storage.store import local_path, open_store
from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.pipelines.recipe import Recipe
from chatmetrics.pipelines.resources import billions_of_parameters

HUB = "https://huggingface.co"
HUB_SECONDS = 5.0
# Qwen2.5 by billions of parameters: layers, hidden size, intermediate size, attention heads, key-value heads.
# DeepSeek's R1-Distill-Qwen models have the same sizes.
TYPICAL = {
    0.5: (24, 896, 4864, 14, 2),
    1.5: (28, 1536, 8960, 12, 2),
    3: (36, 2048, 11008, 16, 2),
    7: (28, 3584, 18944, 28, 4),
    14: (48, 5120, 13824, 40, 8),
    32: (64, 5120, 27648, 40, 8),
    72: (80, 8192, 29568, 64, 8),
}
TYPICAL_VOCABULARY = 152064


def base_sizes(recipe: Recipe) -> Sizes:
    """Return the sizes of a recipe's base model.

    When its config.json is not available, the sizes of the closest Qwen2.5 are returned, and a note is printed. A GGUF
    file is fetched and dequantized first, unless it is in the cache.

    Raises:
        InputError: config.json is not available, and the number of parameters is unknown; or the GGUF file cannot be
            used.
        ServiceError: the package index does not answer.
    """
    reference = as_folder(recipe.base_model)
    try:
        if reference.startswith("s3://") or local_path(reference).is_dir():
            config = json.loads(open_store(reference).read_bytes("config.json"))
        else:
            config = _from_hub(reference, recipe.revision)
    except (StorageError, InputError, httpx.HTTPError, httpx.InvalidURL, UnexpectedAnswer, ValueError) as error:
        typical = _typical(billions_of_parameters(recipe))
        console.note(
            f"{reference}: its config.json is not available ({_first_line(error)}); using the sizes of a Qwen2.5 with "
            f"as many parameters: {typical.layers} layers, hidden size {typical.hidden}"
        )
        return typical
    return Sizes.of(config)


def _from_hub(name: str, revision: str) -> Mapping[str, Any]:
    # Not huggingface_hub: it retries for half a minute, and is not installed where runs are only submitted.
    url = f"{os.environ.get('HF_ENDPOINT', HUB)}/{name}/resolve/{revision or 'main'}/config.json"
    headers = bearer(read_secret("HF_TOKEN"))
    response = httpx.get(url, headers=headers, timeout=HUB_SECONDS, follow_redirects=True, verify=tls_context())
    return checked_json(response.raise_for_status().status_code, response.headers, response.content)


def _typical(billions: float) -> Sizes:
    nearest = min(TYPICAL, key=lambda size: abs(size - billions))
    layers, hidden, intermediate, heads, key_value_heads = TYPICAL[nearest]
    return Sizes(
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        key_value_heads=key_value_heads,
        head_width=hidden // heads,
        vocabulary=TYPICAL_VOCABULARY,
        tied=False,
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
