"""The recipe's `merge` section."""

from pydantic import Field

from chatmetrics.components.settings import Settings


class MergeSettings(Settings):
    """How the merged model is written, and how much its logits may differ from those of base and adapter."""

    max_shard_size: str = Field("5GB", pattern=r"^\d+[KMG]B$", description="Maximum size of a safetensors file")
    tolerance: float = Field(
        1e-3,
        gt=0,
        description="Largest permitted difference of a logit, relative to the largest logit, for a base model in fp32; "
        "1e-6 is typical",
    )
    # The merged weights are rounded: to bf16 by up to 2^-9 of their value, to fp16 by up to 2^-12. Base and adapter are
    # not.
    half_tolerance: float = Field(
        3e-2, gt=0, description="`tolerance` for a base model in bf16 or fp16, whose merged weights are rounded"
    )
