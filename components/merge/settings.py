"""The recipe's `merge` section."""

from pydantic import Field

from chatmetrics.components.settings import Settings


class MergeSettings(Settings):
    """How the merged model is written, and how much its logits may differ from those of base and adapter."""

    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$", description="Maximum size of a safetensors file")
    tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest difference of a logit, relative to the largest logit, that merging in fp32 may cause; "
        "1e-6 is typical",
    )
    half_tolerance: float = Field(
        0.1,
        gt=0,
        description="The same for the saved model of a base in bf16 or fp16, whose merged weights are rounded; 0.001 "
        "to 0.04 is typical",
    )
