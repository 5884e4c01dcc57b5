"""How much there is to compute in a training run. Without torch, so that an estimate appears at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Counts of one epoch.

    Attributes:
        examples: number of training examples.
        tokens: tokens of all examples, each counted in full.
        computed_tokens: tokens that all processes compute for them, after packing or with padding.
        slowest_tokens: in each step the tokens of the process that computes most, summed over all steps. Processes wait
            for each other, so these tokens take the time. With one process, they are all tokens.
        answer_tokens: tokens that the loss is computed on.
        packs: number of packs that the process which computes most computes, one after the other.
        largest_pack: maximum number of tokens that a device computes at once.
    """

    examples: int
    tokens: int
    computed_tokens: int
    slowest_tokens: int
    answer_tokens: int
    packs: int
    largest_pack: int
