"""First weights of a small Qwen2 that can copy: an induction head, set by hand.

A name in a question must come out in the SQL letter for letter. A transformer does that with two heads, one after
the other (Olsson et al. 2022, arXiv:2209.11895): the first writes beside each token which token stands before it;
the second looks for a place whose token before is the current one, and copies what stands there. From random weights
these heads appear only after more text than a CPU reads in an hour. Starting from weights that already look like
those of a trained model is known as mimetic initialization (Trockman and Kolter 2023, arXiv:2305.09828); training
then changes them as it likes.
"""

import torch
from torch.nn.init import orthogonal_
from transformers import Qwen2ForCausalLM

EMBEDDING_DEVIATION = 0.06  # of embeddings, so that a token outweighs what random layers add to it
PREVIOUS_SHARPNESS = 4.0  # of the first head's biases: 0.84 of its attention falls on the token before
MATCH_SHARPNESS = 1.6  # of the second head's weights, where a match scores about 10 and chance about 1
QUIET = 0.3  # what is left of random weights, so that they do not drown what is set here
SLOWEST = 0.02  # radians a token: rotations below this leave a match over a hundred tokens recognizable


def start_with_induction(model: Qwen2ForCausalLM) -> None:
    """Set the attention of the first two layers so that the model continues a repeated text."""
    config = model.config
    groups, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    shared = config.num_attention_heads // groups  # query heads to a key-value head
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(width // 2) / (width // 2))
    slow = (frequencies < SLOWEST).nonzero().flatten()
    matching = torch.cat([slow, slow + width // 2])  # rotation pairs dimension i with i + width / 2
    previous, induction = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, EMBEDDING_DEVIATION)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(QUIET)
            layer.mlp.down_proj.weight.mul_(QUIET)
        for attention in (previous, induction):
            attention.q_proj.weight.mul_(QUIET)
            attention.k_proj.weight.mul_(QUIET)
        for group in range(groups):
            token, before, copied = (orthogonal_(torch.empty(width, config.hidden_size)) for _ in range(3))
            key = slice(group * width, (group + 1) * width)
            # Equal biases of query and key score cos(frequency x distance); turned by one token, they peak there.
            previous.k_proj.bias[key] = PREVIOUS_SHARPNESS * torch.cat(
                [torch.ones(width // 2), torch.zeros(width // 2)]
            )
            previous.v_proj.weight[key] = token
            induction.k_proj.weight[key][matching] = MATCH_SHARPNESS * before[: len(matching)]
            induction.v_proj.weight[key] = copied
            for head in range(group * shared, (group + 1) * shared):
                query, distance = slice(head * width, (head + 1) * width), 1 + head % shared
                turned = [torch.cos(frequencies * distance), -torch.sin(frequencies * distance)]
                previous.q_proj.bias[query] = PREVIOUS_SHARPNESS * torch.cat(turned)
                previous.o_proj.weight[:, query] = EMBEDDING_DEVIATION * before.T if distance == 1 else 0.0
                induction.q_proj.weight[query][matching] = MATCH_SHARPNESS * token[: len(matching)]
                induction.o_proj.weight[:, query] = EMBEDDING_DEVIATION * copied.T
