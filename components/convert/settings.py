"""The recipe's section `convert`."""

from typing import Literal

from pydantic import Field

from chatmetrics.components.settings import Settings


class ConvertSettings(Settings):
    """How a model becomes a GGUF file."""

    quantization: Literal["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "F16"] = Field(
        default="Q4_K_M", description="llama.cpp's name of the mix of tensor types; F16 leaves the model unquantized"
    )
    keep_unquantized: bool = Field(
        default=False, description="Keep and publish the unquantized GGUF file too, for example to quantize it again"
    )
    context_length: int = Field(
        default=2048, ge=64, description="Tokens to serve the model with, prompt and answer together"
    )
