"""How many greedy answers change with the quantization, and with the number of requests that are computed together.

    python -m tests.benchmarks.rounding DATASET MERGED

DATASET is a folder that preprocess wrote, MERGED one that merge wrote. 40 dev questions are asked of transformers in
fp32, and of llama.cpp's server with each quantization and 1, 2 and 4 requests at the same time. Printed are the number
of answers that differ between each pair, and how close the two most likely tokens are.
"""

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatmetrics.components.convert.convert import convert
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.evaluate.sampling import spread
from chatmetrics.components.inference.client import Client
from chatmetrics.components.inference.server import LlamaServer
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate, dataset_template

QUESTIONS, CONTEXT, MAX_TOKENS = 40, 2560, 60
QUANTIZATIONS, CONCURRENCIES = ("F16", "Q8_0"), (1, 2, 4)


def main() -> None:
    """Ask all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("merged", type=Path)
    arguments = parser.parse_args()
    template = dataset_template(arguments.dataset)
    examples = spread(read_examples(arguments.dataset / "dev.jsonl"), QUESTIONS)
    prompts = [template.prompt(example.system, example.instruction, example.input) for example in examples]
    answers = {"transformers, fp32": reference(arguments.merged, prompts, template)}
    for quantization in QUANTIZATIONS:
        with tempfile.TemporaryDirectory() as folder:
            settings = ConvertSettings.model_validate({"quantization": quantization, "context_length": CONTEXT})
            gguf = convert(settings, arguments.merged, Path(folder)).gguf
            for concurrency in CONCURRENCIES:
                answers[f"{quantization}, {concurrency} together"] = served(gguf, prompts, template, concurrency)
    for name, own in answers.items():
        different = (sum(a != b for a, b in zip(own, other, strict=True)) for other in answers.values())
        print(f"{name:20}", *(f"{count:3}" for count in different))


@torch.no_grad()
def reference(folder: Path, prompts: Sequence[str], template: PromptTemplate) -> list[str]:
    """The answers of transformers; prints quantiles of the differences between the two highest logits."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stop = tokenizer.convert_tokens_to_ids(template.stop)
    answers, gaps = [], list[float]()
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        done = model.generate(
            ids,
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop,
            output_scores=True,
            return_dict_in_generate=True,
        )
        answers.append(tokenizer.decode(done.sequences[0, ids.shape[1] :], skip_special_tokens=True).strip())
        highest = (scores[0].topk(2).values for scores in done.scores)
        gaps += [float(first - second) for first, second in highest]
    shares = (0.01, 0.02, 0.05)
    found = ", ".join(
        f"{share:.0%} below {gap:.2f}" for share, gap in zip(shares, np.quantile(gaps, shares), strict=True)
    )
    print(f"differences between the two highest logits: {found}")
    return answers


def served(gguf: Path, prompts: Sequence[str], template: PromptTemplate, concurrency: int) -> list[str]:
    """The answers of llama.cpp's server to `concurrency` requests at the same time."""
    with LlamaServer(gguf, CONTEXT, concurrency) as server, ThreadPoolExecutor(concurrency) as pool:
        client = Client(server.endpoint, template=template)
        return list(pool.map(lambda prompt: client.generate(prompt, MAX_TOKENS).text.strip(), prompts))


if __name__ == "__main__":
    main()
