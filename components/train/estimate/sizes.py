"""A model's sizes, as its config.json has them, and the arithmetic that training it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from chatmetrics.components.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """Of a decoder with gated feed-forward layers, as Qwen2's and Llama's.

    Attributes:
        layers: how many.
        hidden: width of the residual stream.
        intermediate: width inside the feed-forward layers.
        heads: of attention.
        key_value_heads: of keys and values, fewer where queries share them.
        head_width: of one head.
        vocabulary: tokens.
        tied: whether the head has the embedding's weights.
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
        """Read them from a config.json.

        Raises:
            InputError: one is not there; names it.
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
        """Width of all heads' queries."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all heads' keys, and of their values."""
        return self.key_value_heads * self.head_width

    def linears(self) -> dict[str, tuple[int, int]]:
        """What goes into a layer's matrices and what comes out."""
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
        """Weights of the matrices of one layer."""
        return sum(rows * columns for rows, columns in self.linears().values())

    @property
    def outside_layers(self) -> int:
        """Weights of embeddings and head, and of all norms."""
        return self.hidden * ((1 if self.tied else 2) * self.vocabulary + 2 * self.layers + 1)

    @property
    def parameters(self) -> int:
        """Of the whole model, without biases."""
        return self.layers * self.layer_weights + self.outside_layers

    @property
    def attention_tokens(self) -> float:
        """The length at which attention over all pairs of tokens is as much arithmetic as all the rest of a layer."""
        return self.layer_weights / (2 * self.queries)

    def flops(self, tokens: int, answer_tokens: int, pack: float, checkpointing: bool) -> float:
        """Operations of training an adapter of frozen weights: two a weight and token forward, two backward.

        The backward pass has no gradients of frozen weights to compute, so it takes as much as the forward one and not
        twice that; the adapter's own part is left out, it is a hundredth.

        Args:
            tokens: that go through the layers.
            answer_tokens: of them those that go through the head.
            pack: mean tokens that attention sees at once, all pairs of which it computes.
            checkpointing: whether the layers' forward pass is computed twice.
        """
        passes = 3 if checkpointing else 2
        layers = self.layers * self.layer_weights * (1 + pack / self.attention_tokens)
        return 2 * passes * tokens * layers + 4 * answer_tokens * self.vocabulary * self.hidden
