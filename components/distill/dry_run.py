"""What asking a teacher everything would cost, from a few answers."""

from pathlib import Path

from chatmetrics.components.distill.session import open_session
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError


def estimate(settings: DistillSettings, dataset: Path, ledger_uri: str, databases: str = "") -> str:
    """Ask the teacher a few questions, and say in some lines what all would take.

    What was answered is kept, so that it is not paid for again.

    Raises:
        InputError: as `distill`.
        ServiceError: the teacher does not answer.
    """
    with open_session(settings, dataset, databases, ledger_uri) as work:
        questions = [
            question for question in (*work.of_first_round(work.train), *work.own) if work.has_schema(question)
        ]
        requests = [request for question in questions for _, request in work.requests(question, 1)]
        scored = work.dev if settings.score_teacher else []
        dev = [work.score_request(example) for example in scored if work.has_schema(example)]
        pool = requests or dev
        few = pool[:: max(1, len(pool) // settings.dry_run_questions)][: settings.dry_run_questions]
        answers = list(work.ask(few, "dry run").values())
        if not answers:
            raise InputError("a dry run needs a question that is answered: there is none")
        missing = {request.key(settings) for request in (*requests, *dev)} - set(work.ledger.answers)
        prompt, completion = (
            sum(getattr(answer, name) for answer in answers) / len(answers)
            for name in ("prompt_tokens", "completion_tokens")
        )
        longest = max(answer.completion_tokens for answer in answers)
        cost = (prompt * settings.prompt_price + completion * settings.completion_price) / 1000
        most = (prompt * settings.prompt_price + longest * settings.completion_price) / 1000
        lines = [
            f"{len(requests)} requests for {len(questions)} questions, {len(dev)} for the teacher's own score; "
            f"{len(missing)} are not answered yet",
            f"{len(answers)} answers: {prompt:.0f} tokens sent and {completion:.0f} received on average, {longest} at "
            "most",
            f"about {settings.currency}{cost * len(missing):,.2f}, and {settings.currency}{most * len(missing):,.2f} "
            "if all are as long as the longest",
            f"so far: {work.ledger.spending().sentence}",
        ]
        if settings.synthesis.questions_per_database:
            lines.append("questions that are made up come on top: they are not known yet")
        if settings.rounds > 1:
            lines.append("this is the first round; a further one asks where the student fails, which is not known yet")
    return "\n".join(lines)
