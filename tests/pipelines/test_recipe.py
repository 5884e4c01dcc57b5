import json
from pathlib import Path

import pytest

from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.image import image, source_hash
from chatmetrics.pipelines.recipe import load_recipe, shipped_recipes
from tests.helm.chart import needs_helm, template

MINIMAL = """
name: mine
base_model: ./base
preprocess:
  format: jsonl
  source: questions.jsonl
  databases: databases
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and the files that it names; the current folder is another one."""
    home = tmp_path / "recipes"
    (home / "base").mkdir(parents=True)
    (home / "databases").mkdir()
    (home / "questions.jsonl").touch()
    (home / "mine.yaml").write_text(MINIMAL)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return home


def refusal(folder: Path, text: str, *overrides: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_recipe(str(path), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths_in_a_recipe_are_taken_from_its_folder(folder: Path) -> None:
    recipe = load_recipe(str(folder / "mine.yaml"))
    assert recipe.base_model == str(folder / "base")
    assert recipe.preprocess.source == str(folder / "questions.jsonl")
    assert load_recipe(str(folder / "mine.yaml"), as_written=True).base_model == "./base"


def test_paths_in_an_override_are_taken_from_the_current_folder(folder: Path) -> None:
    Path("base").mkdir()
    recipe = load_recipe(str(folder / "mine.yaml"), ["base_model=base"])
    assert recipe.base_model == str(Path.cwd() / "base")


def test_hub_names_and_uris_are_not_changed(folder: Path) -> None:
    for name in ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "s3://bucket/base"):
        assert load_recipe(str(folder / "mine.yaml"), [f"base_model={name}"]).base_model == name


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", "1E-4"])
def test_numbers_are_numbers(folder: Path, text: str) -> None:
    recipe = load_recipe(str(folder / "mine.yaml"), [f"train.learning_rate={text}"])
    assert recipe.train.learning_rate == pytest.approx(1e-4)
    assert recipe.section("train")["learning_rate"] == pytest.approx(1e-4)


def test_an_override_replaces_the_recipes_value(folder: Path) -> None:
    text = MINIMAL + "  schema: none\n"
    (folder / "mine.yaml").write_text(text)
    recipe = load_recipe(str(folder / "mine.yaml"), ["preprocess.schema=m-schema", "preprocess.limit=7"])
    assert (recipe.preprocess.schema_form, recipe.preprocess.limit) == ("m-schema", 7)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.learning_rat", "learning_rate"),
        ("trian.epochs", "train"),
        ("preprocess.shema", "schema"),
        ("preproces.workers", "preprocess"),
        ("distill.synthesis.questions_per_databas", "questions_per_database"),
        ("distill.query_timeout", "query_seconds"),
        ("preprocess.query_timeout", "query_seconds"),
        ("cluster.s3_endpont", "s3_endpoint"),
    ],
)
def test_an_unknown_key_is_named_with_the_closest_known_one(folder: Path, key: str, nearest: str) -> None:
    message = refusal(folder, MINIMAL, f"{key}=1")
    assert key.split(".")[0] in message
    assert message.endswith(f"did you mean {nearest}?")


def test_an_unknown_key_without_a_close_one_is_answered_with_all_keys(folder: Path) -> None:
    message = refusal(folder, MINIMAL, "evaluate.parallel=4")
    assert message.startswith("--set evaluate.parallel: unknown key; known are verdict, gate, ")
    assert ", concurrency, " in message


def test_an_unknown_key_in_the_file_names_file_and_key(folder: Path) -> None:
    message = refusal(folder, MINIMAL + "train:\n  learning_rat: 1e-4\n")
    assert message == f"{folder / 'mine.yaml'}: train.learning_rat: unknown key; did you mean learning_rate?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINIMAL + "train:\n  learning_rate: fast\n", "train.learning_rate: input should be a valid number"),
        (MINIMAL + "train:\n  checkpoint_minutes: .inf\n", "train.checkpoint_minutes: input should be a finite number"),
        (MINIMAL + "distill:\n  budget: .nan\n", "distill.budget: input should be a finite number"),
        (MINIMAL.replace("name: mine", ""), "name: is missing"),
        (MINIMAL + "name: other\n", "key 'name' is given twice"),
        (MINIMAL + "train: 3\n", "train: "),
        (MINIMAL + "  - x: [\n", "not valid YAML"),
        ("- a list", "must be a mapping"),
        ("", "must be a mapping"),
        (MINIMAL.replace("mine", "Mine Own"), "name: "),
        (MINIMAL.replace("mine", "m" * 101), "name: string should have at most 100 characters"),
        (MINIMAL + "  format: cvs\n", "key 'format' is given twice"),
        (MINIMAL.replace("jsonl\n", "cvs\n", 1), "preprocess.format: input should be "),
    ],
)
def test_a_wrong_recipe_is_one_line(folder: Path, text: str, expected: str) -> None:
    message = refusal(folder, text)
    assert str(folder / "mine.yaml") in message
    assert expected in message


@pytest.mark.parametrize("override", ["train.learning_rate", "=3", "name.x=3", "train.learning_rate=[1"])
def test_a_malformed_override_says_how_to_write_it(folder: Path, override: str) -> None:
    assert refusal(folder, MINIMAL, override).startswith("--set ")


def test_a_missing_recipe_names_the_closest(folder: Path) -> None:
    with pytest.raises(InputError, match="hotel-demo"):
        load_recipe("hotel-dmo")
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_recipe(str(folder / "mien.yaml"))


@pytest.mark.parametrize("name", ["hotel-demo", "spider-7b", "spider-7b-schema", "spider-coder-7b", "spider-laptop"])
def test_shipped_recipes_are_known_by_name(name: str) -> None:
    assert load_recipe(name).name == name
    assert name in shipped_recipes()


def test_the_published_settings_are_exact() -> None:
    recipe = load_recipe("spider-7b")
    train = recipe.train
    assert recipe.base_model == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert (recipe.preprocess.cutoff_length, recipe.preprocess.workers) == (2048, 16)
    assert recipe.preprocess.schema_form == "none"
    assert (train.learning_rate, train.epochs, train.batch_size, train.gradient_accumulation) == (5e-5, 10, 2, 8)
    assert (train.logging_steps, train.checkpoint_steps, train.precision) == (5, 100, "bf16")
    assert (train.lora_rank, train.lora_targets, train.cutoff_length, train.max_steps) == (8, "all-linear", 2048, 0)


def test_a_later_step_must_take_the_lengths_of_an_earlier_one(folder: Path) -> None:
    message = refusal(folder, MINIMAL, "preprocess.cutoff_length=4096", "convert.context_length=4096")
    assert "train.cutoff_length is 2048 and evaluate.context_length is 2048" in message


TAUGHT = ("distill.base_url=http://127.0.0.1:8000/v1", "distill.model=teacher")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("distill.base_url=http://127.0.0.1:8000/v1",), "model is missing"),
        (
            ("distill.base_url=localhost:8000", "distill.model=large"),
            "write http://HOST/v1, https://HOST/v1, scripted or self, not 'localhost:8000'",
        ),
        (("distill.base_url='http://[::1'", "distill.model=large"), "write http://HOST/v1"),
        (("distill.unlabeled_questions=own.csv",), "questions without SQL need a teacher"),
        (
            ("preprocess.format=none",),
            "set distill.base_url and distill.synthesis.questions_per_database, or distill.unlabeled_questions",
        ),
        (("evaluate.gate_teacher=0.02",), "set distill.base_url and distill.score_teacher"),
        ((*TAUGHT, "evaluate.gate_teacher=0.02", "distill.score_teacher=false"), "distill.score_teacher"),
        ((*TAUGHT, "distill.train_on=reasoning"), "evaluate.max_tokens is 256, less than distill.max_reasoning_tokens"),
        ((*TAUGHT, "distill.rounds=0"), "distill.rounds"),
        (("distill.base_url=self", "evaluate.gate_teacher=0.02"), "evaluate.gate_teacher compares with a teacher"),
        (("distill.base_url=self", "preprocess.format=none"), "the questions must come from a teacher"),
    ],
)
def test_invalid_settings_of_a_teacher_are_one_line(folder: Path, overrides: tuple[str, ...], expected: str) -> None:
    assert expected in refusal(folder, MINIMAL, *overrides)


def test_without_a_teacher_the_dag_gets_no_settings_of_distillation(folder: Path) -> None:
    (folder / "mine.yaml").write_text(MINIMAL)
    assert not {"distill_settings", "round_evaluate_settings"} & set(load_recipe(str(folder / "mine.yaml")).arguments())
    taught = load_recipe(str(folder / "mine.yaml"), TAUGHT)
    assert {"distill_settings", "round_evaluate_settings"} <= set(taught.arguments())
    assert (
        taught.arguments()["round_evaluate_settings"]["questions"],
        taught.arguments()["round_evaluate_settings"]["gate"],
    ) == (
        "train",
        0,
    )


def test_the_student_is_asked_between_rounds_as_it_is_served(folder: Path) -> None:
    (folder / "mine.yaml").write_text(MINIMAL)
    own = ("evaluate.answer=vote", "evaluate.sampled_answers=8", "evaluate.few_shot=3", "evaluate.few_shot_for=student")
    others = ("evaluate.grammar=names", "evaluate.repair_attempts=1", "distill.sampled_answers=0")
    recipe = load_recipe(str(folder / "mine.yaml"), (*TAUGHT, *own, *others))
    settings = EvaluateSettings.model_validate(recipe.arguments()["round_evaluate_settings"])
    assert (settings.answer, settings.few_shot, settings.grammar, settings.repair_attempts) == ("greedy", 0, "none", 0)


def test_a_student_that_teaches_itself_is_trained_once_more_than_there_are_rounds(folder: Path) -> None:
    (folder / "mine.yaml").write_text(MINIMAL)
    for overrides, students in (
        ((), 0),
        ((*TAUGHT, "distill.rounds=2"), 2),
        (("distill.base_url=self",), 2),
        (("distill.base_url=self", "distill.rounds=2"), 3),
    ):
        assert load_recipe(str(folder / "mine.yaml"), overrides).distill.students == students


def test_the_serving_pods_get_the_store_and_the_image_of_this_source(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(folder / "none.json"))
    settings = ("s3_endpoint=http://s3:9000", "s3_secret=keys", "s3_addressing=virtual", "s3_ca_config_map=authorities")
    recipe = load_recipe(str(folder / "mine.yaml"), [f"cluster.{setting}" for setting in settings])
    values = recipe.deployment().values
    assert values["s3"] == {
        "endpoint": "http://s3:9000",
        "region": "us-east-1",
        "addressing": "virtual",
        "caConfigMap": "authorities",
        "existingSecret": "keys",
        "accessKeyKey": "accesskey",
        "secretKeyKey": "secretkey",
    }
    repository, _, tag = image("serve").rpartition(":")
    assert values["image"] == {"repository": repository, "tag": tag, "digest": ""}
    own = load_recipe(
        str(folder / "mine.yaml"), ["deploy.values.s3.endpoint=http://other", "deploy.values.service.port=1"]
    )
    assert own.deployment().values == values | {"s3": {"endpoint": "http://other"}, "service": {"port": 1}}


@needs_helm
@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "https://s3.example.com",
        "http://s3:9000",
        "http://s3.storage",
        "http://s3.storage.svc:80/",
        "http://10.0.0.1",
    ],
)
def test_a_store_without_known_peers_is_refused_before_the_run_as_the_chart_would_after_it(
    folder: Path, endpoint: str
) -> None:
    (folder / "mine.yaml").write_text(MINIMAL)
    enabled = ["deploy.enabled=true", f"cluster.s3_endpoint={endpoint}"]
    accepted = template("hotel", f's3.endpoint="{endpoint}"').returncode == 0
    assert accepted is (endpoint not in ("", "https://s3.example.com"))
    if accepted:
        load_recipe(str(folder / "mine.yaml"), enabled)
    else:
        with pytest.raises(InputError, match=r"deploy\.values\.networkPolicy\.s3 is missing"):
            load_recipe(str(folder / "mine.yaml"), enabled)
    peers = "deploy.values.networkPolicy.s3=[{ipBlock: {cidr: 10.0.0.1/32}}]"
    for chosen in ([*enabled, peers], [*enabled, "deploy.values.networkPolicy.enabled=false"], enabled[1:]):
        load_recipe(str(folder / "mine.yaml"), chosen)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (
            "registry:5000/cm/serve@sha256:ab",
            {"repository": "registry:5000/cm/serve", "tag": "", "digest": "sha256:ab"},
        ),
        ("registry:5000/cm/serve:12", {"repository": "registry:5000/cm/serve", "tag": "12", "digest": ""}),
    ],
)
def test_a_pushed_image_is_named_by_its_digest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, reference: str, expected: dict[str, str]
) -> None:
    built = {"serve": {"hash": source_hash("serve"), "reference": reference, "digest": None}}
    (folder / "digests.json").write_text(json.dumps(built))
    monkeypatch.setenv("CHATMETRICS_IMAGE_DIGESTS", str(folder / "digests.json"))
    assert load_recipe(str(folder / "mine.yaml")).deployment().values["image"] == expected


def test_only_a_recipe_that_deploys_gives_the_dag_settings_of_deploy(folder: Path) -> None:
    assert "deploy_settings" not in load_recipe(str(folder / "mine.yaml")).arguments()
    arguments = load_recipe(str(folder / "mine.yaml"), ["deploy.enabled=true"]).arguments()
    assert arguments["deploy_settings"]["release"] == "chatmetrics"


@pytest.mark.parametrize("override", ["deploy.release=Hotel", "deploy.namespace=a_b", "deploy.timeout_minutes=0"])
def test_invalid_settings_of_deploy_are_refused_before_a_run(folder: Path, override: str) -> None:
    assert override.partition("=")[0] in refusal(folder, MINIMAL, override)
