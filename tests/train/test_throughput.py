import pytest

from chatmetrics.components.train.estimate.sizes import Sizes
from chatmetrics.components.train.watch.throughput import ThroughputMeter, TrainingCounts, peak_tflops

QWEN_7B = Sizes(
    layers=28,
    hidden=3584,
    intermediate=18944,
    heads=28,
    key_value_heads=4,
    head_width=128,
    vocabulary=152064,
    tied=False,
)


def test_operations_of_a_7b_match_the_counted_ones() -> None:
    # 28.4 GFLOP a token of LoRA training, 41.5 with checkpointing, where every token goes through the head.
    assert QWEN_7B.flops(1, 1, 0, checkpointing=False) / 1e9 == pytest.approx(28.4, rel=0.03)
    assert QWEN_7B.flops(1, 1, 0, checkpointing=True) / 1e9 == pytest.approx(41.5, rel=0.03)
    assert QWEN_7B.parameters == pytest.approx(7.6e9, rel=0.01)


def test_at_attention_tokens_attention_equals_the_rest_of_a_layer() -> None:
    without, with_attention = (QWEN_7B.flops(1, 0, pack, False) for pack in (0, QWEN_7B.attention_tokens))
    assert with_attention == pytest.approx(2 * without)


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("Tesla V100-SXM2-32GB", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A10", 125),
        ("NVIDIA L40", 181),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 0),
        ("NVIDIA RTX A1000", 0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 0),
        ("AMD Instinct MI300X", 0),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(device: str, peak: float) -> None:
    assert peak_tflops(device, "bf16") == peak
    assert peak_tflops(device, "fp32") == 0


def test_throughput_counts_from_the_start_of_the_process() -> None:
    counts = TrainingCounts(tokens=10**9)
    speed = ThroughputMeter(counts, QWEN_7B, "fp32")
    assert speed.measures()["tokens_per_second"] == 0
    counts.tokens += 500
    speed.count([100, 50], answer_tokens=20)
    assert 0 < speed.measures()["tokens_per_second"] < 10**9
    assert counts.computed_tokens == 150
    squares = 100**2 + 50**2
    assert counts.flops == pytest.approx(QWEN_7B.flops(150, 20, squares / 150, checkpointing=False))
    assert "tokens/s" in speed.line()
