"""Estimates the cost of a distillation from a few answers."""

from pathlib import Path

from chatmetrics.components.distill.session import open_session
from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError


def estimate(settings: DistillSettings, dataset: Path, ledger_uri: str, databases: str = "") -> str:
    """Ask the teacher a few questions and estimate what asking all of them would cost, in a few lines of text.

    The answers are kept in the ledger, so that no request is paid for twice.

    Raises:
        InputError: as `distill`, or the student is its own teacher, which costs nothing.
        ServiceError: the teacher does not answer.
    """
    if settings.is_self:
        raise InputError("distill.base_url is self: there is no teacher to pay; `chatmetrics estimate` shows the time")
    with open_session(settings, dataset, databases, ledger_uri) as session:
        first_round = (*session.of_first_round(session.train), *session.unlabeled)
        questions = [question for question in first_round if session.has_schema(question)]
        requests = [request for question in questions for _, request in session.requests(question, 1)]
        scored = session.dev if settings.score_teacher else []
        dev = [session.score_request(example) for example in scored if session.has_schema(example)]
        pool = requests or dev
        few = pool[:: max(1, len(pool) // settings.dry_run_questions)][: settings.dry_run_questions]
        answers = list(session.ask(few, "dry run").values())
        if not answers:
            raise InputError("the dry run got no answer to estimate from: add questions, or raise the caps")
        unanswered = {request.key(settings) for request in (*requests, *dev)} - set(session.ledger.answers)
        prompt = sum(answer.prompt_tokens for answer in answers) / len(answers)
        completion = sum(answer.completion_tokens for answer in answers) / len(answers)
        longest = max(answer.completion_tokens for answer in answers)
        average = (prompt * settings.prompt_price + completion * settings.completion_price) / 1000
        most = (prompt * settings.prompt_price + longest * settings.completion_price) / 1000
        lines = [
            f"{len(requests)} requests for {len(questions)} questions, {len(dev)} for the teacher's own score; "
            f"{len(unanswered)} are not answered yet",
            f"{len(answers)} answers: on average {prompt:.0f} tokens sent and {completion:.0f} received, at most "
            f"{longest} received",
            f"about {settings.currency}{average * len(unanswered):,.2f}, or "
            f"{settings.currency}{most * len(unanswered):,.2f} if all answers are as long as the longest",
            f"so far: {session.ledger.spending().sentence}",
        ]
        if settings.synthesis.questions_per_database:
            lines.append("not included: generating questions, and answering them")
        if settings.rounds > 1:
            lines.append("not included: rounds after the first, which ask where the student fails")
    return "\n".join(lines)
