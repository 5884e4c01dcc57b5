"""Initial weights of a small Qwen2 that can copy: an induction head, set by hand.

The names in a question must be copied into the SQL exactly. A transformer copies with two attention heads in successive
layers (Olsson et al. 2022, arXiv:2209.11895):

    tokens            ...  A  B  ...  A  -> B
    first head             at B: writes "the previous token is A" into the residual stream of B
    second head                       at A: attends to the position whose previous token is A, and copies its token, B

With random weights, these heads appear only after more text than a CPU can process in an hour. Starting from weights
that resemble those of a trained model is known as mimetic initialization (Trockman and Kolter 2023, arXiv:2305.09828);
training may change them freely afterwards.
"""

import torch
from torch.nn.init import orthogonal_
from transformers import Qwen2ForCausalLM

EMBEDDING_DEVIATION = 0.06  # standard deviation of embeddings, which must outweigh the outputs of random layers
PREVIOUS_SHARPNESS = 4.0  # scale of the first head's biases: 0.84 of its attention is on the previous token
MATCH_SHARPNESS = 1.6  # scale of the second head's weights: a match scores about 10, a random pair about 1
RANDOM_SCALE = 0.3  # factor of the other, random weights, so that they do not cover the weights set here
SLOW_RADIANS = 0.02  # per token: slower rotations keep a match recognizable over a hundred tokens


def start_with_induction(model: Qwen2ForCausalLM) -> None:
    """Set the attention weights of the first two layers so that the model continues a repeated text."""
    config = model.config
    groups, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    shared = config.num_attention_heads // groups  # query heads per key-value head
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(width // 2) / (width // 2))
    slow = (frequencies < SLOW_RADIANS).nonzero().flatten()
    matching = torch.cat([slow, slow + width // 2])  # RoPE rotates dimensions i and i + width / 2 as a pair
    previous, induction = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(0, EMBEDDING_DEVIATION)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(RANDOM_SCALE)
            layer.mlp.down_proj.weight.mul_(RANDOM_SCALE)
        for attention in (previous, induction):
            attention.q_proj.weight.mul_(RANDOM_SCALE)
            attention.k_proj.weight.mul_(RANDOM_SCALE)
        for group in range(groups):
            token, before, copied = (orthogonal_(torch.empty(width, config.hidden_size)) for _ in range(3))
            key = slice(group * width, (group + 1) * width)
            # Equal biases of query and key give the score cos(frequency x distance). Rotated by one token, the query's
            # bias peaks at the previous token.
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
