"""The recipe's `merge` section."""

from pydantic import Field

from chatmetrics.components.settings import Settings


class MergeSettings(Settings):
    """How the merged model is written and how far it may be from base and adapter apart."""

    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$", description="most bytes in one safetensors file")
    tolerance: float = Field(
        1e-3, gt=0, description="largest difference of a logit, relative to the largest logit, for a base in fp32"
    )
    # Rounding a merged weight to bf16 moves it by up to 2^-9 of its value, to fp16 by 2^-12, which apart it is not.
    half_tolerance: float = Field(
        3e-2, gt=0, description="the same for a base in bf16 or fp16, whose weights are rounded"
    )
