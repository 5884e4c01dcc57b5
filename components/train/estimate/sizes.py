"""A model's sizes from its config.json, and the number of operations that training it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from chatmetrics.components.errors import InputError

# Bytes per weight: blocks of 64 with an 8-bit scale, and blocks of 256 scales with a scale in fp32 (QLoRA's double
# quantization, arXiv 2305.14314).
NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder with gated feed-forward layers, such as Qwen2 and Llama.

    Attributes:
        layers: number of layers.
        hidden: width of the residual stream.
        intermediate: width inside the feed-forward layers.
        heads: number of attention heads.
        key_value_heads: number of heads of keys and values; fewer than `heads` if queries share them.
        head_width: width of one head.
        vocabulary: number of tokens.
        tied: whether the head shares the embedding's weights.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read the sizes from the content of a config.json.

        Raises:
            InputError: one is missing; names it.
        """
        config = config.get("text_config") or config
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            return cls(
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                intermediate=int(config["intermediate_size"]),
                heads=heads,
                key_value_heads=int(config.get("num_key_value_heads") or heads),
                head_width=int(config.get("head_dim") or hidden // heads),
                vocabulary=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise InputError(f"the base's config.json has no {error.args[0]}; is it a decoder like Qwen2?") from error

    @property
    def queries(self) -> int:
        """Width of all heads' queries together."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all heads' keys together, and of their values."""
        return self.key_value_heads * self.head_width

    def linears(self) -> dict[str, tuple[int, int]]:
        """Input and output width of each of a layer's matrices, by name."""
        return {
            "q_proj": (self.hidden, self.queries),
            "k_proj": (self.hidden, self.keys),
            "v_proj": (self.hidden, self.keys),
            "o_proj": (self.queries, self.hidden),
            "gate_proj": (self.hidden, self.intermediate),
            "up_proj": (self.hidden, self.intermediate),
            "down_proj": (self.intermediate, self.hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Number of weights in the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.linears().values())

    @property
    def outside_layers(self) -> int:
        """Number of weights in embeddings, head and all norms."""
        return self.hidden * ((1 if self.tied else 2) * self.vocabulary + 2 * self.layers + 1)

    @property
    def parameters(self) -> int:
        """Number of weights of the whole model, without biases."""
        return self.layers * self.layer_weights + self.outside_layers

    @property
    def attention_tokens(self) -> float:
        """The length at which attention over all pairs of tokens takes as many operations as the rest of a layer."""
        return self.layer_weights / (2 * self.queries)

    @property
    def repeats_keys(self) -> bool:
        """Whether FlexAttention takes keys and values repeated for every head of the queries, as SDPA does.

        transformers repeats them if the number of heads is no power of two (integrations/flex_attention.py).
        """
        return self.heads & (self.heads - 1) != 0

    def dequantized_bytes(self, width: int) -> float:
        """Bytes read and written to dequantize all layers' weights from NF4 once, to `width` bytes per weight."""
        return self.layers * self.layer_weights * (NF4_BYTES + width)

    def flops(self, tokens: int, answer_tokens: int, pack: float, checkpointing: bool) -> float:
        """Operations of training an adapter on frozen weights: per weight and token two forward and two backward.

        The backward pass computes no gradients of frozen weights, so it takes as many operations as the forward pass
        and not twice as many. The adapter's own part, about one percent, is left out.

        Args:
            tokens: tokens that the layers compute.
            answer_tokens: those of them that the head computes.
            pack: mean number of tokens per pack; attention computes all pairs of them.
            checkpointing: whether the layers' forward pass is computed twice.
        """
        passes = 3 if checkpointing else 2
        layers = self.layers * self.layer_weights * (1 + pack / self.attention_tokens)
        return 2 * passes * tokens * layers + 4 * answer_tokens * self.vocabulary * self.hidden
