"""A prompt template from the recipe to the report: every step takes it from the one before it."""

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from chatmetrics.components.convert.convert import convert, description
from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.evaluate import evaluate
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.merge.merge import merge
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.nl2sql.acceptance_test import read_acceptance_test
from chatmetrics.components.nl2sql.example import read_examples
from chatmetrics.components.nl2sql.prompts.template import DEEPSEEK3, TEMPLATES
from chatmetrics.components.preprocess.dataset_card import DatasetCard
from chatmetrics.components.preprocess.preprocess import preprocess
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.serve.ask import published_settings
from chatmetrics.components.serve.model import find_model
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.storage.manifest import describe, manifest_of
from chatmetrics.components.train.launch import train
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.cli.steps import ask_settings
from chatmetrics.pipelines.recipe import load_recipe
from tests.base_tokenizers import BASES, write_base

CHATML = TEMPLATES["chatml"]
QUESTIONS = 40


@pytest.mark.skipif("CHATMETRICS_SPIDER_DIR" not in os.environ, reason="CHATMETRICS_SPIDER_DIR is not set")
def test_a_base_is_trained_and_asked_in_its_own_template(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", BASES["smollm2"])
    source = {"source": os.environ["CHATMETRICS_SPIDER_DIR"], "format": "spider", "tokenizer": str(base)}
    settings = PreprocessSettings.model_validate(source | {"limit": QUESTIONS, "cutoff_length": 2048, "workers": 1})
    dataset = tmp_path / "dataset"
    card = preprocess(settings, dataset)
    assert (card.template, card.prompt_template) == ("auto", CHATML.text)
    assert DatasetCard.read(dataset).prompt_template == CHATML.text
    assert 'template: "chatml"\n' in (dataset / "llama_factory.yaml").read_text("utf-8")

    training = TrainSettings(max_steps=2, batch_size=2, gradient_accumulation=1, precision="fp32")
    train(training, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")
    assert json.loads((tmp_path / "adapter" / "run.json").read_bytes())["prompt_template"] == CHATML.text
    merge(MergeSettings(), str(base), tmp_path / "adapter", tmp_path / "merged")
    models = {}
    for name, folder, template in (("student", tmp_path / "merged", ""), ("base", base, "plain")):
        converting = ConvertSettings.model_validate({"quantization": "F16", "base_template": template})
        converted = convert(converting, folder, tmp_path / "gguf", name)
        describe(name, converted.gguf, description(converting, folder, converted))
        models[name] = converted.gguf
    manifest = manifest_of(models["student"])
    assert manifest is not None
    assert (manifest.prompt_template, manifest.stop) == (CHATML.text, ("<|im_end|>",))
    served = find_model(str(models["student"]), ServeSettings())
    assert (served.template, served.stop) == (CHATML, ("<|im_end|>",))
    published = manifest.model_copy(update={"schema_form": "ddl", "cutoff_length": 2048})
    assert published_settings(published).prompt_template == CHATML.text

    asked = EvaluateSettings(max_tokens=8, concurrency=2, acceptance_test_threshold=0)
    report = evaluate(asked, dataset, "", models["student"], models["base"], tmp_path / "report", None)
    assert report.templates == {"student": "chatml", "base": "plain"}
    page, text = ((tmp_path / "report" / name).read_text("utf-8") for name in ("report.html", "report.md"))
    assert "prompt template chatml" in page and "Prompt templates: student chatml, base plain." in text
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    examples = {example.id: example for example in read_examples(dataset / "dev.jsonl")}
    for system, template in (("student", CHATML), ("base", TEMPLATES["plain"])):
        lines = (tmp_path / "report" / f"predictions-{system}.jsonl").read_text("utf-8").splitlines()
        answers = [json.loads(line) for line in lines]
        assert len(answers) == report.questions > 30  # those whose database there is
        for answer in answers:
            example = examples[answer["id"]]
            prompt = template.prompt(example.system, example.instruction, example.input)
            assert answer["prompt_tokens"] == len(tokenizer.encode(prompt).ids)
    [test] = (tmp_path / "report" / "acceptance_test").glob("*.json")
    assert read_acceptance_test(test).template == CHATML

    # The same examples in another template are another training run.
    changed = card.model_copy(update={"prompt_template": DEEPSEEK3.text})
    changed.write(dataset)
    with pytest.raises(InputError, match="a run with another prompt_template"):
        train(training, dataset, str(base), tmp_path / "adapter", tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["hotel-demo", "spider-7b", "spider-7b-schema"])
def test_the_shipped_recipes_keep_deepseek_s_template(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.preprocess.template, recipe.base_template) == ("deepseek3", "deepseek3")
    assert recipe.arguments()["convert_settings"]["base_template"] == "deepseek3"


def test_a_new_recipe_takes_the_base_s_own_template_and_the_base_can_have_another() -> None:
    recipe = load_recipe("spider-7b", ["preprocess.template=auto"])
    assert recipe.base_template == PreprocessSettings().template == "auto"
    assert load_recipe("spider-7b", ["convert.base_template=plain"]).base_template == "plain"


def test_reasoning_cannot_be_trained_on_in_plain() -> None:
    changes = ["preprocess.template=plain", "distill.train_on=reasoning", "evaluate.max_tokens=4096"]
    with pytest.raises(InputError, match=r"preprocess\.template is plain, in which an answer ends at a blank line"):
        load_recipe("hotel-demo", changes)


@pytest.mark.parametrize(
    ("published", "schema", "template", "expected"),
    [
        ("chatml", "", "", "chatml"),
        ("chatml", "none", "", "chatml"),  # the manifest's also if the schema is given
        ("chatml", "", "chatml", "chatml"),
        ("", "", "", "deepseek3"),  # a manifest from before there was a choice
        (None, "", "", "deepseek3"),
        (None, "m-schema", "plain", "plain"),
        ("chatml", "", "plain", "the model was trained with chatml"),
        (None, "", "mistral", "there is no such template; give one of deepseek3, chatml, llama3, gemma, plain"),
    ],
)
def test_ask_takes_the_template_from_the_manifest(
    tmp_path: Path, published: str | None, schema: str, template: str, expected: str
) -> None:
    manifest = ""
    if published is not None:
        (tmp_path / "m.gguf").write_bytes(b"GGUF")
        text = TEMPLATES[published].text if published else ""
        describe("m", tmp_path / "m.gguf", {"prompt_template": text, "schema_form": "ddl", "cutoff_length": 512})
        manifest = str(tmp_path / "m.manifest.json")
    if " " in expected:
        with pytest.raises(InputError, match=expected):
            ask_settings(manifest, schema, template)
        return
    settings = ask_settings(manifest, schema, template)
    assert settings.prompt_template == TEMPLATES[expected].text
    assert settings.schema_form == (schema or "ddl")
