"""The recipe's `convert` section."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.nl2sql.prompts.template import TemplateName
from chatmetrics.components.settings import Settings


class ConvertSettings(Settings):
    """How a model is converted to a GGUF file."""

    quantization: Literal["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q5_0", "Q4_1", "Q4_0", "F16"] = Field(
        default="Q4_K_M",
        description="llama.cpp's name of the mix of tensor types; F16 for no quantization. Q8_0, Q5_0, Q4_1 and Q4_0 "
        "fit every model whose rows are multiples of 32, the others only multiples of 256",
    )
    keep_unquantized: bool = Field(
        default=False, description="Also keep and publish the unquantized GGUF file, for example to quantize it again"
    )
    base_template: TemplateName | Literal[""] = Field(
        default="",
        description="Template of the prompts of a model that was not trained here: the base model, which is compared "
        "with the student. The values are those of preprocess.template; empty: the same one as preprocess.template, or "
        "auto without a recipe",
    )
    context_length: int = Field(
        default=2048,
        ge=64,
        description="Context length for serving: tokens of prompt and answer together, at most what the model supports",
    )
