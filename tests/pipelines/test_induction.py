"""The initial weights of the demo's base model can copy."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from chatmetrics.pipelines.demo.induction import start_with_induction


def repeated_text_loss(model: Qwen2ForCausalLM, vocabulary: int) -> float:
    """The mean loss of the second half of random texts whose halves are equal, without its first token."""
    text = torch.randint(0, vocabulary, (16, 20))
    ids = torch.cat([text, text], 1)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, 20:-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 21:].flatten()))


def test_a_repeated_text_is_continued_without_training() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    model = Qwen2ForCausalLM(config).eval()
    random = repeated_text_loss(model, 1000)
    start_with_induction(model)
    assert repeated_text_loss(model, 1000) < random - 2  # the tokens are e**2, seven times, as likely
