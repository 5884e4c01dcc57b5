"""The numbers of an evaluation; report.json has the form of `Report`."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, quantiles
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, Field

from chatmetrics.components.evaluate.comparison import Accuracy, Comparison, compare_all, ordered
from chatmetrics.components.evaluate.costs import Costs
from chatmetrics.components.evaluate.coverage import coverages
from chatmetrics.components.evaluate.gate_thresholds import Coverage, GateResult, check_gate
from chatmetrics.components.evaluate.held_out_score import HeldOutScore
from chatmetrics.components.evaluate.judge import Reason
from chatmetrics.components.evaluate.predictions import FAILED_BEFORE, TokenUsage
from chatmetrics.components.evaluate.questions import NotAsked
from chatmetrics.components.evaluate.score import Item, Missing, ScoredAnswer, Verdict
from chatmetrics.components.evaluate.settings import EvaluateSettings
from chatmetrics.components.evaluate.teacher_answers import TEACHER
from chatmetrics.components.nl2sql.databases.execution import FailureMode

if TYPE_CHECKING:
    from chatmetrics.components.nl2sql.acceptance_test import AcceptanceScore

RAW, BOUND, VOTE = "as answered", "with names bound", "by vote"
CHOSE_ADAPTER = "chose the adapter"
# Groupings of the questions, each with a function that returns the groups of a question.
GROUPINGS: dict[str, Callable[[Item], Iterable[str]]] = {
    "query_type": lambda item: item.query_types,
    "hardness": lambda item: [item.hardness],
    "difficulty": lambda item: filter(None, [item.difficulty]),
    "split": lambda item: filter(None, [item.split]),
    "training data": lambda item: filter(None, [item.seen]),
    "adapter": lambda item: [CHOSE_ADAPTER] if item.chose_adapter else [],
}


class AnswerSpeed(BaseModel):
    """Seconds and tokens per answer, measured by the client with several requests at the same time.

    Attributes:
        latency: median, 90 % and 99 % quantile of the seconds until the end of an answer.
        first_token: median, 90 % and 99 % quantile of the seconds until the first token.
        prompt_tokens: mean number of tokens of a prompt.
        completion_tokens: mean number of tokens of an answer.
        truncated: number of answers that were cut at the token limit.
    """

    latency: tuple[float, float, float]
    first_token: tuple[float, float, float]
    prompt_tokens: float
    completion_tokens: float
    truncated: int

    @classmethod
    def of(cls, usages: Sequence[TokenUsage]) -> Self | None:
        """Aggregate the measurements; None if there are none."""
        if not usages:
            return None
        return cls(
            latency=_percentiles([usage.latency for usage in usages]),
            first_token=_percentiles([usage.first_token for usage in usages]),
            prompt_tokens=fmean(usage.prompt_tokens for usage in usages),
            completion_tokens=fmean(usage.completion_tokens for usage in usages),
            truncated=sum(usage.truncated for usage in usages),
        )


class BindingScore(BaseModel):
    """What binding names to the schema changes, see `bind_names`.

    Attributes:
        raw_strict: accuracy of the answers as they are, by the strict verdict.
        raw_official: the same by the official verdict.
        raw_bird: the same by BIRD's.
        strict: accuracy with names bound, by the strict verdict.
        official: the same by the official verdict.
        bird: the same by BIRD's.
        comparison: both, by the report's verdict.
        kinds: number of repaired answers and share of right ones, by kind of repair. An answer with several kinds
            counts once, for example as "added join, alias".
        repaired: the same for all repaired answers.
    """

    raw_strict: Accuracy
    raw_official: Accuracy
    raw_bird: Accuracy
    strict: Accuracy
    official: Accuracy
    bird: Accuracy
    comparison: "Comparison"
    kinds: dict[str, Accuracy]
    repaired: Accuracy

    @classmethod
    def of(cls, answers: Sequence[ScoredAnswer], verdict: Verdict) -> Self:
        """Count the right answers with and without repairs."""
        bound = [answer.with_names_bound for answer in answers]
        repaired = [answer for answer in bound if answer.bound]
        kinds = defaultdict[str, list[ScoredAnswer]](list)
        for answer in repaired:
            kinds[_kinds_of(answer)].append(answer)
        pairs = [(raw.correct(verdict), new.correct(verdict)) for raw, new in zip(answers, bound, strict=True)]
        return cls(
            raw_strict=Accuracy.of(answers, "strict"),
            raw_official=Accuracy.of(answers, "official"),
            raw_bird=Accuracy.of(answers, "bird"),
            strict=Accuracy.of(bound, "strict"),
            official=Accuracy.of(bound, "official"),
            bird=Accuracy.of(bound, "bird"),
            comparison=Comparison.of(RAW, BOUND, pairs),
            kinds={kind: Accuracy.of(found, verdict) for kind, found in sorted(kinds.items())},
            repaired=Accuracy.of(repaired, verdict),
        )


class VoteScore(BaseModel):
    """What sampled answers could change, and what a vote by result makes of them, see `elected`.

    Attributes:
        sampled_answers: greatest number of sampled answers to a question.
        strict: accuracy of the elected answers by the strict verdict.
        official: the same by the official verdict.
        bird: the same by BIRD's.
        comparison: the greedy answers with names bound, compared with the elected ones, by the report's verdict.
        recall: share of questions for which one of the first 1, 2, ... answers is right, with names bound and by the
            report's verdict. The first is the greedy one.
    """

    sampled_answers: int
    strict: Accuracy
    official: Accuracy
    bird: Accuracy
    comparison: "Comparison"
    recall: list[float]

    @classmethod
    def of(cls, answers: Sequence[ScoredAnswer], verdict: Verdict) -> Self | None:
        """Count the right answers; None if there are no sampled ones."""
        voted = [answer for answer in answers if answer.voted]
        if not voted:
            return None
        sampled = max(len(answer.prediction.sampled_answers) for answer in voted)
        pairs = [(answer.with_names_bound.correct(verdict), answer.by_vote.correct(verdict)) for answer in voted]
        first_right = [answer.voted.first_right[verdict] for answer in voted if answer.voted]
        return cls(
            sampled_answers=sampled,
            strict=Accuracy.of([answer.by_vote for answer in voted], "strict"),
            official=Accuracy.of([answer.by_vote for answer in voted], "official"),
            bird=Accuracy.of([answer.by_vote for answer in voted], "bird"),
            comparison=Comparison.of(BOUND, VOTE, pairs),
            recall=[sum(0 < first <= k for first in first_right) / len(voted) for k in range(1, sampled + 2)],
        )


class SystemScore(BaseModel):
    """Numbers of one system, by the judgements that count.

    Attributes:
        strict: accuracy by the strict verdict.
        official: accuracy by the official verdict.
        bird: accuracy by BIRD's verdict.
        binding: accuracies of the answers as they are and with names bound.
        vote: accuracy by vote; None without sampled answers.
        asked_again: accuracy of the answers for which the model was asked again with the database's error; None if
            it never was. All these answers were wrong before.
        groups: accuracies by the report's verdict, by grouping and group.
        failures: number of answers by failure mode.
        reasons: number of answers by reason.
        speed: time and tokens; None if not measured.
    """

    strict: Accuracy
    official: Accuracy
    bird: Accuracy
    binding: BindingScore
    vote: VoteScore | None
    asked_again: Accuracy | None
    groups: dict[str, dict[str, Accuracy]]
    failures: dict[str, int]
    reasons: dict[str, int]
    speed: AnswerSpeed | None

    def by(self, verdict: Verdict) -> Accuracy:
        """The accuracy by a verdict."""
        return {"strict": self.strict, "official": self.official, "bird": self.bird}[verdict]


class AcceptanceTestScore(BaseModel):
    """The student's score in the acceptance test that is published with it."""

    questions: int
    right: int
    needed: int
    threshold: float
    passed: bool

    @classmethod
    def of(cls, score: "AcceptanceScore") -> Self:
        """Take the numbers of an acceptance test's score."""
        return cls(
            questions=score.total,
            right=score.right,
            needed=score.needed,
            threshold=score.threshold,
            passed=score.passed,
        )

    @property
    def sentence(self) -> str:
        """The numbers in words."""
        needed = f"{self.needed} {'is' if self.needed == 1 else 'are'} needed (threshold {self.threshold:.0%})"
        return f"The student answers {self.right} of {self.questions} questions correctly, {needed}"


class Report(GateResult):
    """Result of an evaluation. The gate applies to the first system.

    Attributes:
        name: title of the report.
        verdict: the verdict of groups, comparisons and the gate.
        bind_names: whether answers count with their names bound; `SystemScore.binding` has both accuracies.
        answer: whether the greedy answer counts or the elected one; `SystemScore.vote` has the latter's accuracy.
        questions: number of questions that were asked.
        missing_databases: number of questions that were skipped, by database that is missing or cannot be read.
        database_problems: why a database cannot be read, for those that exist.
        gold_failures: number of questions whose gold query fails; they do not count for any system.
        coverages: how many questions are scored, and why others are not.
        chose_adapter: number of scored questions by which early stopping chose the adapter. They do not count for the
            gate.
        empty_gold: number of questions whose gold query returns no rows. They count, but wrong queries often return no
            rows too.
        systems: the systems' numbers, by name.
        comparisons: comparison of each pair of systems.
        held_out: scores of the held-out sets, by name. Their questions are no part of the other numbers.
        costs: None if nothing was measured.
        acceptance_test: the student's score in its acceptance test; None if there is none.
        few_shot: which prompts show training questions, in words; empty if none do.
        grammar: the restriction of what the asked models could write.
        templates: name of the template of each asked model's prompts; a model can be asked in another than the others.
    """

    name: str
    verdict: Verdict
    bind_names: bool
    answer: Literal["greedy", "vote"]
    questions: int
    missing_databases: dict[str, int]
    database_problems: dict[str, str]
    gold_failures: int
    coverages: list[Coverage]
    chose_adapter: int
    empty_gold: int
    systems: dict[str, SystemScore]
    comparisons: list[Comparison]
    held_out: dict[str, HeldOutScore] = Field({})
    costs: Costs | None
    acceptance_test: AcceptanceTestScore | None = None
    few_shot: str = ""
    grammar: Literal["none", "names"] = "none"
    templates: dict[str, str] = Field({})

    @property
    def votes(self) -> dict[str, VoteScore]:
        """The votes, by system."""
        return {name: score.vote for name, score in self.systems.items() if score.vote}

    @property
    def repair_kinds(self) -> list[str]:
        """The kinds of repairs that occurred."""
        return sorted({kind for score in self.systems.values() for kind in score.binding.kinds})

    @property
    def failure_modes(self) -> list[str]:
        """The failure modes that occurred, in the order of `FailureMode`."""
        return [mode.value for mode in FailureMode if any(mode.value in s.failures for s in self.systems.values())]

    @property
    def reasons(self) -> list[str]:
        """The reasons that occurred, in the order of `Reason`."""
        return [reason.value for reason in Reason if any(reason.value in s.reasons for s in self.systems.values())]

    @property
    def groupings(self) -> dict[str, list[str]]:
        """The groups that occurred, by grouping."""
        return {
            grouping: ordered({group for score in self.systems.values() for group in score.groups[grouping]})
            for grouping in GROUPINGS
            if any(score.groups[grouping] for score in self.systems.values())
        }

    @property
    def headline(self) -> str:
        """The result in one line."""
        scores = (
            f"{name}: strict {score.strict.accuracy:.1%} "
            f"[{score.strict.interval[0]:.1%}, {score.strict.interval[1]:.1%}]"
            f", official {score.official.accuracy:.1%} of {score.strict.total}{self._others(score)}"
            for name, score in self.systems.items()
        )
        held_out = (f"held out, {name}: {score.sentence(self.verdict)}" for name, score in self.held_out.items())
        return "; ".join([*scores, *held_out, *self.caveats])

    def _others(self, score: SystemScore) -> str:
        """The accuracies that do not count, if they differ from the one that does."""
        binding, vote = score.binding, score.vote
        by_vote = self.answer == "vote" and vote is not None
        counted = VOTE if by_vote else BOUND if self.bind_names else RAW
        found = {RAW: binding.raw_strict, BOUND: binding.strict} if binding.repaired.total or by_vote else {}
        found |= {VOTE: vote.strict} if vote else {}
        others = [f"{accuracy.accuracy:.1%} {name}" for name, accuracy in found.items() if name != counted]
        return f" ({counted}; strict {', '.join(others)})" if others else ""

    @property
    def caveats(self) -> list[str]:
        """What a reader of the accuracies has to know."""
        caveats = [coverage.sentence for coverage in self.coverages if coverage.not_scored]
        for name, score in self.held_out.items():
            caveats += [
                f"held-out set {name}: {coverage.sentence}" for coverage in score.coverages if coverage.not_scored
            ]
        if self.chose_adapter:
            split = f" on the split {self.gate_split!r}" if self.gate_split else ""
            caveats.append(
                f"{self.chose_adapter} questions chose the adapter during training and do not count for the gate: "
                f"{self.gate_accuracy:.1%} of the others{split}"
            )
        if self.few_shot:
            caveats.append(self.few_shot)
        if self.grammar == "names":
            caveats.append("answers had only the schema's names, by a grammar that a served model does not have")
        return caveats


def summarize(
    name: str,
    items: Sequence[Item],
    missing: Missing,
    settings: EvaluateSettings,
    acceptance_test: "AcceptanceScore | None" = None,
    not_asked: NotAsked | None = None,
    few_shot: str = "",
    held_out_not_asked: NotAsked | None = None,
) -> Report:
    """Calculate the report's numbers.

    If a system after the first is named "teacher", it is the first system's teacher.

    Args:
        name: title of the report.
        items: all questions, with those of held-out sets.
        missing: the databases whose questions were skipped.
        settings: the verdict, the gate and the prices.
        acceptance_test: the student's score in its acceptance test, if there is one.
        not_asked: questions of the dataset that were not asked.
        few_shot: what prompts show in addition to schema and question, in words.
        held_out_not_asked: the same as `not_asked`, of held-out sets.
    """
    held_out: dict[str, list[Item]] = {name: [] for name in (held_out_not_asked or NotAsked()).splits}
    for item in items:
        if item.held_out:
            held_out.setdefault(item.split, []).append(item)
    items = [item for item in items if not item.held_out]
    asked = [item for item in items if not item.lacks_database]
    names = list(dict.fromkeys(name for item in items for name in item.answers))
    raw = [item for item in asked if item.scored]
    scored = [item.counted(settings.bind_names, settings.answer == "vote") for item in raw]
    answers = {system: [item.answers[system] for item in raw if system in item.answers] for system in names}
    systems = {system: _system_score(system, scored, answers[system], settings.verdict) for system in names}
    teacher = TEACHER if TEACHER in names[1:] else ""
    return Report(
        name=name,
        verdict=settings.verdict,
        bind_names=settings.bind_names,
        answer=settings.answer,
        questions=len(asked),
        missing_databases={db_id: database.questions for db_id, database in missing.items()},
        database_problems={db_id: database.problem for db_id, database in missing.items() if database.problem},
        gold_failures=len(asked) - len(scored),
        coverages=coverages(items, names[0], not_asked),
        chose_adapter=sum(item.chose_adapter for item in scored),
        empty_gold=sum(item.gold.row_count == 0 for item in scored),
        systems=systems,
        comparisons=compare_all(names, scored, settings.verdict),
        costs=Costs.of(
            {name: speed for name, score in systems.items() if (speed := _measured(score))}, settings, {teacher}
        ),
        acceptance_test=AcceptanceTestScore.of(acceptance_test) if acceptance_test else None,
        held_out={
            name: HeldOutScore.of(name, found, names, settings, held_out_not_asked or NotAsked())
            for name, found in held_out.items()
        },
        few_shot=few_shot,
        grammar=settings.grammar,
        **dict(
            check_gate(scored, names[0], teacher, settings, coverages(items, names[0], not_asked, settings.gate_split))
        ),
    )


def _measured(score: SystemScore) -> tuple[float, float] | None:
    """Mean tokens of a question and its answer, and median seconds per answer; None if not measured."""
    speed = score.speed
    return (speed.prompt_tokens + speed.completion_tokens, speed.latency[0]) if speed else None


def _system_score(
    system: str, items: Sequence[Item], as_answered: Sequence[ScoredAnswer], verdict: Verdict
) -> SystemScore:
    answers = [item.answers[system] for item in items if system in item.answers]
    groups: dict[str, defaultdict[str, list[ScoredAnswer]]] = {name: defaultdict(list) for name in GROUPINGS}
    for item in items:
        for name, groups_of in GROUPINGS.items():
            for group in groups_of(item) if system in item.answers else ():
                groups[name][group].append(item.answers[system])
    failures = Counter(answer.judgement.failure for answer in answers)
    reasons = Counter(reason for answer in answers for reason in answer.judgement.reasons)
    return SystemScore(
        strict=Accuracy.of(answers, "strict"),
        official=Accuracy.of(answers, "official"),
        bird=Accuracy.of(answers, "bird"),
        binding=BindingScore.of(as_answered, verdict),
        vote=VoteScore.of(as_answered, verdict),
        asked_again=_asked_again(as_answered, verdict),
        groups={
            name: {group: Accuracy.of(found[group], verdict) for group in ordered(found)}
            for name, found in groups.items()
        },
        failures={mode.value: failures[mode] for mode in FailureMode if failures[mode]},
        reasons={reason.value: reasons[reason] for reason in Reason if reasons[reason]},
        speed=AnswerSpeed.of([usage for answer in answers if (usage := answer.prediction.usage)]),
    )


def _asked_again(answers: Sequence[ScoredAnswer], verdict: Verdict) -> Accuracy | None:
    found = [answer for answer in answers if FAILED_BEFORE[0] in answer.prediction.fields]
    return Accuracy.of(found, verdict) if found else None


def _kinds_of(answer: ScoredAnswer) -> str:
    """The kinds of an answer's repairs in words, for example "alias, added join"."""
    kinds = dict.fromkeys(repair.kind for repair in answer.bound.repairs) if answer.bound else ()
    return ", ".join(kind.replace("_", " ") for kind in sorted(kinds))


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[89], cuts[98]
