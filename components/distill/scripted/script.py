"""The scripted teacher's answers and faults.

A hash of the request decides whether the answer is correct and which fault occurs, so the order of requests does not
matter.
"""

import argparse
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from chatmetrics.components.distill.scripted.mistakes import mistaken
from chatmetrics.components.nl2sql.example import Example

FAULTS = ("cut", "malformed", "empty", "error_500", "hang", "huge")
STYLES = ("fenced", "prose", "plain")


class Script:
    """Chooses the answer and the fault for each request.

    Args:
        examples: questions with their gold queries.
        options: options of the command line.
    """

    def __init__(self, examples: Sequence[Example], options: argparse.Namespace) -> None:
        self._by_question = {example.input: example for example in examples}
        self._by_database: dict[str, list[Example]] = {}
        for example in examples:
            self._by_database.setdefault(example.db_id, []).append(example)
        self._options = options
        self._attempts: Counter[str] = Counter()
        self._recent: list[float] = []
        self._lock = threading.Lock()

    def fault(self, body: dict[str, Any]) -> str:
        """The fault of this attempt; empty if it is answered normally."""
        name = json.dumps([body["messages"], body.get("seed")])
        with self._lock:
            self._attempts[name] += 1
            attempt = self._attempts[name]
            if self._is_too_fast():
                return "429"
        faults = [fault for fault in FAULTS if self._share(fault, name, attempt) < getattr(self._options, fault)]
        return faults[0] if faults else ""

    def text(self, body: dict[str, Any]) -> tuple[str, str]:
        """Reasoning and text of the answer."""
        prompt = body["messages"][-1]["content"]
        if "Make up" in prompt:
            return "Which questions would people ask?", self._generated_pairs(body)
        example = self._find_example(prompt)
        if example is None:
            return "I do not find this in the schema.", "I am sorry, I cannot answer this question."
        is_wrong = self._share("wrong", example.question, body.get("seed")) < self._options.error_rate
        mark = f"{self._options.seed} {example.question} {body.get('seed')}"
        sql = mistaken(example.sql, mark) if is_wrong else example.sql
        return f"The question is about {example.db_id}. I look for the tables and join them.", self._styled(sql, mark)

    def _find_example(self, prompt: str) -> Example | None:
        """The example whose question follows the instruction, or the longest one that the prompt contains."""
        asked = prompt.rstrip().partition("\n")[2]
        if asked in self._by_question:
            return self._by_question[asked]
        return max(
            (example for question, example in self._by_question.items() if question in prompt),
            key=lambda example: len(example.question),
            default=None,
        )

    def _generated_pairs(self, body: dict[str, Any]) -> str:
        """As many pairs about the database as the prompt asks for; the same request gets the same pairs."""
        prompt = "\n".join(message["content"] for message in body["messages"])
        known = next((found for name, found in self._by_database.items() if f"'{name}'" in prompt), [])
        count = int("".join(filter(str.isdigit, prompt.partition("Make up ")[2].split()[0])) or 1)
        generator = random.Random(f"{self._options.seed} {prompt} {body.get('seed')}")
        pairs = []
        for example in generator.sample(known, min(count, len(known))):
            is_wrong = generator.random() < self._options.error_rate
            sql = mistaken(example.sql, example.question) if is_wrong else example.sql
            pairs.append({"question": example.question, "sql": sql})
        return f"Here they are:\n```json\n{json.dumps(pairs, ensure_ascii=False, indent=1)}\n```"

    def _styled(self, sql: str, mark: str) -> str:
        style = self._options.style
        if style == "mixed":
            style = STYLES[int(self._share("style", mark) * len(STYLES))]
        if style == "plain":
            return sql
        fenced = f"```sql\n{sql};\n```"
        return (
            fenced if style == "fenced" else f"Sure! This query answers the question:\n\n{fenced}\n\nAsk me anything."
        )

    def _is_too_fast(self) -> bool:
        if not self._options.rate_limit:
            return False
        now = time.monotonic()
        self._recent = [moment for moment in self._recent if now - moment < 1]
        self._recent.append(now)
        return len(self._recent) > self._options.rate_limit

    def _share(self, *about: object) -> float:
        """A pseudorandom number from 0 to 1 that depends only on the arguments and the seed."""
        digest = hashlib.sha256(repr((self._options.seed, *about)).encode(errors="replace")).digest()
        return int.from_bytes(digest[:8], "big") / 2**64
