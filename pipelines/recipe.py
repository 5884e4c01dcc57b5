"""A recipe: a short YAML file that says what a run is made of, and the only thing a user changes."""

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from chatmetrics.components.convert.settings import ConvertSettings
from chatmetrics.components.deploy.settings import DeploySettings
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.image import image
from chatmetrics.components.merge.settings import MergeSettings
from chatmetrics.components.preprocess.settings import PreprocessSettings
from chatmetrics.components.serve.settings import ServeSettings
from chatmetrics.components.settings import Settings
from chatmetrics.components.train.settings import TrainSettings
from chatmetrics.pipelines.cluster_settings import ClusterSettings

Section = TypeVar("Section", bound=Settings)

# Values that may name a file or folder. Each is taken relative to the recipe's own folder when it exists there.
PATH_KEYS = (
    *("base_model", "preprocess.source", "preprocess.databases", "preprocess.tokenizer", "distill.unlabeled_questions"),
)
# How the student is asked the training questions between two rounds: all of them, with nothing at stake.
ROUND_EVALUATION: dict[str, Any] = {
    "questions": "train",
    **{"limit": 0, "sample": "", "gate": 0.0, "gate_split": "", "acceptance_test_questions": 0, "score_base": False},
}


class Recipe(Settings):
    """What a run is made of: a base model and one section of settings a step."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="The published model's: MODELS/<name>/<version>.")
    base_model: str = Field(min_length=1, description="A folder, file:// or s3:// URI, or Hub name.")
    revision: str = Field("", description="Branch, tag or commit of a Hub model; empty is its default branch.")
    preprocess: PreprocessSettings
    distill: DistillSettings = DistillSettings()
    train: TrainSettings = TrainSettings()
    merge: MergeSettings = MergeSettings()
    convert: ConvertSettings = ConvertSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    serve: ServeSettings = ServeSettings()
    deploy: DeploySettings = DeploySettings()
    cluster: ClusterSettings = ClusterSettings()
    question: str = Field("", description="Asked of the served model when a run on this machine ends; empty is none.")

    @model_validator(mode="after")
    def _lengths_fit(self) -> Self:
        """Refuse at once what would otherwise fail after hours: a step that takes less than the one before gives."""
        longest = self.preprocess.cutoff_length
        takers = {
            "train.cutoff_length": self.train.cutoff_length,
            "convert.context_length": self.convert.context_length,
            "evaluate.context_length": self.evaluate.context_length,
        }
        short = [f"{key} is {length}" for key, length in takers.items() if length < longest]
        if short:
            raise ValueError(f"{' and '.join(short)}, less than preprocess.cutoff_length, which is {longest}")
        return self

    @model_validator(mode="after")
    def _reasoning_fits(self) -> Self:
        """Refuse a student that would be cut off while it still reasons."""
        if self.distill.train_on != "sql" and self.evaluate.max_tokens < self.distill.max_reasoning_tokens:
            raise ValueError(
                f"evaluate.max_tokens is {self.evaluate.max_tokens}, less than distill.max_reasoning_tokens, which is "
                f"{self.distill.max_reasoning_tokens}: the student would be cut off while it reasons"
            )
        return self

    @model_validator(mode="after")
    def _has_questions(self) -> Self:
        """Refuse a recipe that would train on nothing."""
        if self.preprocess.format == "none" and not (
            self.distill.unlabeled_questions or self.distill.synthesis.questions_per_database
        ):
            raise ValueError(
                "preprocess.format is none, so a teacher must bring the questions: set distill.base_url and "
                "distill.synthesis.questions_per_database, or distill.unlabeled_questions"
            )
        return self

    @model_validator(mode="after")
    def _has_teacher_score(self) -> Self:
        """Refuse a gate about a teacher whose score will not be known."""
        if self.evaluate.gate_teacher is not None and not (self.distill.enabled and self.distill.score_teacher):
            raise ValueError(
                "evaluate.gate_teacher compares with a teacher: set distill.base_url and distill.score_teacher, or "
                "leave gate_teacher empty"
            )
        return self

    @property
    def rounds(self) -> int:
        """How often a teacher is asked before training; 0 without one."""
        return self.distill.rounds if self.distill.enabled else 0

    def arguments(self) -> dict[str, Any]:
        """Return what the DAG's parameters get from the recipe."""
        sections = {step: self.section(step) for step in ("preprocess", "train", "merge", "convert", "evaluate")}
        # Token counts are the base model's own unless the recipe says otherwise.
        if not self.preprocess.tokenizer:
            sections["preprocess"] |= {"tokenizer": self.base_model, "tokenizer_revision": self.revision}
        if self.distill.enabled:
            sections["distill"] = self.section("distill")
            asked = {name: value for name, value in sections["evaluate"].items() if name != "gate_teacher"}
            sections["round_evaluate"] = asked | ROUND_EVALUATION | {"sampled_answers": self.distill.sampled_answers}
        if self.deploy.enabled:
            sections["deploy"] = self.deployment().model_dump(mode="json")
        settings = {f"{step}_settings": section for step, section in sections.items()}
        return {"name": self.name, "base_model": self.base_model, "revision": self.revision, **settings}

    def deployment(self) -> DeploySettings:
        """Return the section `deploy`, with what the chart wants to know of the images and the store put in.

        What the recipe's `deploy.values` says themselves takes precedence: `image` and `s3` as a whole.
        """
        s3 = {
            "endpoint": self.cluster.s3_endpoint,
            "region": self.cluster.s3_region,
            "existingSecret": self.cluster.s3_secret,
            "accessKeyKey": self.cluster.s3_access_key,
            "secretKeyKey": self.cluster.s3_secret_key,
        }
        values = {"image": _chart_image(image("serve")), "s3": s3, **self.deploy.values}
        return self.deploy.model_copy(update={"values": values})

    def section(self, name: str) -> dict[str, Any]:
        """Return the settings of one step, defaults included, as the JSON-like dict its component takes."""
        settings: Settings = getattr(self, name)
        return settings.model_dump(mode="json", by_alias=True, exclude_none=True)


def _chart_image(reference: str) -> dict[str, str]:
    """An image's reference as the chart takes it; a registry's port is no tag."""
    name, _, digest = reference.partition("@")
    head, slash, last = name.rpartition("/")
    repository, _, tag = last.partition(":")
    return {"repository": head + slash + repository, "tag": tag, "digest": digest}


def load_recipe(reference: str, overrides: Sequence[str] = (), as_written: bool = False) -> Recipe:
    """Read and check a recipe.

    Args:
        reference: A path, or the name of a recipe that comes with ChatMetrics, for example `hotel-demo`.
        overrides: `key=value` items, for example `train.learning_rate=1e-4`; the value is read as YAML.
        as_written: Leave relative paths alone instead of resolving them, for output that is the same on any machine.

    Raises:
        InputError: no such recipe, not YAML, an unknown key, or a value that does not fit; names file and key.
    """
    path = find_recipe(reference)
    values = read_mapping(path)
    if not as_written:
        _resolve_paths(values, path.parent)
    changed = _override(values, overrides, as_written)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, str(path), changed)) from error


def load_section(step: str, kind: type[Section], reference: str, overrides: Sequence[str] = ()) -> Section:
    """Return the settings of one step: a recipe's, or without a recipe its defaults, with overrides.

    Args:
        step: Name of the section.
        kind: Its type.
        reference: A recipe as in `load_recipe`; empty is none.
        overrides: As in `load_recipe`, `train.learning_rate=1e-4`.

    Raises:
        InputError: as `load_recipe`; also an override of another section, which would change nothing.
    """
    keys = [_parse_override(override)[0] for override in overrides]
    stray = next((key for key in keys if not key.startswith(f"{step}.")), None)
    if stray is not None:
        raise InputError(f"--set {stray}: this verb reads the section {step} only; write {step}.KEY=VALUE")
    if reference:
        section = getattr(load_recipe(reference, overrides), step)
        assert isinstance(section, kind)
        return section
    values: dict[str, Any] = {}
    changed = _override(values, overrides, as_written=False)
    try:
        return kind.model_validate(values.get(step, {}))
    except ValidationError as error:
        raise InputError(_explain(error, "", changed, (step,))) from error


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with ChatMetrics: path by name."""
    folder = Path(str(files("chatmetrics.pipelines"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(reference: str) -> Path:
    """Return the file of a recipe given by path or by the name of a shipped one.

    Raises:
        InputError: there is none; names the nearest ones.
    """
    path, shipped = Path(reference), shipped_recipes()
    if path.is_file():
        return path
    if reference in shipped:
        return shipped[reference]
    beside = [str(other) for other in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(reference, [*beside, *shipped], n=3, cutoff=0.5) or list(shipped)
    raise InputError(f"{reference}: no such recipe; nearest: {', '.join(near)}")


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: a key given twice is an error, and 1e-4 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key '{twice}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a point and a signed exponent in a float, so `1e-4` would be a string.
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
        InputError: it cannot be read or holds something else; names the line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise InputError(f"{path}: it holds no mapping of keys to values; see one that comes with ChatMetrics")
    return values


def _parse_override(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise InputError(f"--set {override}: write it as key=value, for example train.learning_rate=1e-4")
    value = _parse_yaml(text, f"--set {override}")
    return key.strip(), "" if value is None and not text.strip() else value


def _override(values: dict[str, Any], overrides: Sequence[str], as_written: bool) -> set[str]:
    """Put the overrides into `values` and return their keys."""
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
    if last == "schema":  # the field's other name must not stand beside it
        values.pop("schema_form", None)
    values[last] = value


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    for key in PATH_KEYS:
        *parents, last = key.split(".")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            section[last] = _resolved(key, section[last], folder)


def _resolved(key: str, value: Any, folder: Path) -> Any:
    """Make a relative path absolute when it exists in `folder`; a Hub name or URI stays what it is."""
    if key not in PATH_KEYS or not isinstance(value, str) or not value or "://" in value:
        return value
    path = folder / Path(value).expanduser()
    return str(path.resolve()) if path.exists() else value


def _explain(error: ValidationError, file: str, overridden: set[str], section: tuple[str, ...] = ()) -> str:
    """One line: where, which key, what is wrong; the first problem, and how many more there are."""
    first, *more = error.errors(include_url=False)
    key = ".".join(map(str, (*section, *first["loc"])))
    where = f"--set {key}" if key in overridden else ": ".join(filter(None, (file, key)))
    others = f" (and {len(more)} more: {', '.join('.'.join(map(str, e['loc'])) for e in more)})" if more else ""
    return f"{where}: {_problem(first, section)}{others}"


def _problem(error: ErrorDetails, section: tuple[str, ...]) -> str:
    if error["type"] == "extra_forbidden":
        *parents, last = [str(part) for part in (*section, *error["loc"])]
        near = difflib.get_close_matches(last, known := _known_keys(parents), n=1, cutoff=0.5)
        return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known are {', '.join(known)}"
    if error["type"] == "missing":
        return "is missing and has no default"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return message if isinstance(error["input"], dict) else f"{message}, not {error['input']!r}"


def _known_keys(parents: Iterable[str]) -> list[str]:
    model: type[Settings] = Recipe
    for parent in parents:
        section = model.model_fields[parent].annotation
        if not (isinstance(section, type) and issubclass(section, Settings)):
            return []
        model = section
    return [field.alias or name for name, field in model.model_fields.items()]
