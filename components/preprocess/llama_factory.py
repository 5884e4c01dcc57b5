"""What LLaMA-Factory needs to train on a dataset as it is: dataset_info.json and a training YAML."""

import json
from pathlib import Path

from chatmetrics.components.nl2sql.prompts.template import PromptTemplate
from chatmetrics.components.preprocess.readers import DEV, TRAIN
from chatmetrics.components.preprocess.settings import PreprocessSettings

YAML = "llama_factory.yaml"
# The templates of LLaMA-Factory that render the same prompts, by our names (its src/llamafactory/data/template.py,
# commit ff6d4d1). Its qwen and smollm2 add a system prompt of their own where there is no schema; chatml does not. Its
# empty has no mark between question and answer and no end of an answer, so that it is not our plain.
NAMES = {"deepseek3": "deepseek3", "chatml": "chatml", "llama3": "llama3", "gemma": "gemma"}
HEADER = """\
# A starting point for LLaMA-Factory, next to dataset_info.json; run it in this folder:
#   llamafactory-cli train llama_factory.yaml
"""
NO_TEMPLATE = """\
# No template of LLaMA-Factory renders the prompts of this dataset, which are
#   {text!r}
# A model that it trains is asked with other prompts than this dataset's.
"""


def write_dataset_info(dataset: Path, settings: PreprocessSettings, template: PromptTemplate) -> None:
    """Write dataset_info.json, and a training YAML that names the template of the prompts."""
    columns = {"prompt": "instruction", "query": "input", "response": "output"}
    columns |= {"system": "system"} if settings.schema_form != "none" else {}
    info = {
        f"chatmetrics_{name}": {"file_name": f"{name}.jsonl", "formatting": "alpaca", "columns": columns}
        for name in (TRAIN, DEV)
    }
    (dataset / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    (dataset / YAML).write_text(_training(settings, template), encoding="utf-8")


def _training(settings: PreprocessSettings, template: PromptTemplate) -> str:
    values = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": settings.tokenizer,
        "dataset_dir": ".",
        "dataset": f"chatmetrics_{TRAIN}",
        "cutoff_len": settings.cutoff_length,
        "finetuning_type": "lora",
        "lora_target": "all",
        "output_dir": "adapter",
    }
    name = NAMES.get(template.name)
    header = HEADER + ("" if name else NO_TEMPLATE.format(text=template.text))
    values |= {"template": name} if name else {}
    # Strings in JSON are strings in YAML.
    return header + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
