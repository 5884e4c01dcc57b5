"""What the clients of the soak send: a seeded mix of paths, bodies, tokens and bad manners."""

import json
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Any

from tests.serve.pods import ANSWER

# "SELECT 0 + 1 + 2 ...": a query that can be cut after any token, from a model whose answer takes about a second.
LONG = ["SELECT", " 0", *(f" + {number}" for number in range(1, 400))]
OPENAI = "/v1/chat/completions"
QUESTION = "有哪些酒店？"
SLOW_BYTES = (100, 1000, 10_000)  # per second, of a client that reads slowly
SLOW_SECONDS = (3.0, 8.0, 13.0)  # for a body; after ten seconds it is refused


class Cut(StrEnum):
    """Where a client disconnects."""

    NOWHERE = "nowhere"
    IN_HEADERS = "in the headers"
    IN_BODY = "in the body"
    WAITING = "before the response"
    IN_RESPONSE = "in the response"


@dataclass(frozen=True)
class Target:
    """What is asked of the pods: names of a short and a long model, and their answers, if they are known."""

    short: str = "hotel"
    long: str = "long"
    database: str = "hotel"
    answers: dict[str, str] = field(default_factory=lambda: {"hotel": ANSWER, "long": "".join(LONG)})


@dataclass(frozen=True)
class Plan:
    """A request and the behavior of its client.

    Attributes:
        path: The path; a request without a body is a GET.
        body: The body.
        client: The client's name, or `wrong` for a token that was never valid, or `old` for one that was replaced.
        streamed: Whether the answer is streamed.
        valid: Whether the body is acceptable.
        expected: The text of the answer; empty if it is not known.
        cut: Where the client disconnects.
        patience: Seconds until it does, in the response thousands of bytes. A client that reads slowly has some too.
        reads: Bytes per second that it reads; 0 is as fast as possible.
        sends: Seconds for sending the body.
        keeps: Whether the connection is used for the client's next request.
    """

    path: str
    body: bytes
    client: str
    streamed: bool
    valid: bool = True
    expected: str = ""
    cut: Cut = Cut.NOWHERE
    patience: float = 0.0
    reads: int = 0
    sends: float = 0.0
    keeps: bool = False

    def about(self) -> str:
        """The request in words, for the list of violations."""
        words = [self.path, "streamed" if self.streamed else "whole", f"token of {self.client}"]
        words += ["" if self.valid else "wrong body", "" if self.cut is Cut.NOWHERE else f"disconnects {self.cut}"]
        words += [
            f"reads {self.reads} bytes/s" if self.reads else "",
            f"sends in {self.sends:g} s" if self.sends else "",
        ]
        return ", ".join(filter(None, words))


def plan(random: Random, target: Target) -> Plan:
    """Choose the next request. Half of the clients disconnect early, if the answer does not come first."""
    client = random.choices(("analyst", "other", "old", "wrong"), (45, 45, 6, 4))[0]
    path = random.choices(("/api/generate", "/api/chat", OPENAI, "/ask", "/api/tags"), (27, 21, 21, 26, 5))[0]
    if path == "/api/tags":
        return Plan(path, b"", client, streamed=False, **_manners(random, 100, has_body=False))
    streamed, valid = random.random() < 0.6, random.random() > 0.06
    long = random.random() < (0.5 if streamed else 0.25)
    body, expected = _body(random, target, path, streamed, long)
    if not valid:
        body = random.choice((b"{", b"[]", body[:-1] + b', "unknown": 1}'))
    manners = _manners(random, (30_000 if long else 800) if streamed else 100, has_body=True)
    if manners.get("reads") and streamed and path in ("/api/generate", "/api/chat"):
        # Megabytes, so that no buffer of the system holds the rest of the answer.
        body = body[:-1] + b', "logprobs": true, "top_logprobs": 20}'
    return Plan(path, body, client, streamed, valid, expected, **manners)


def _manners(random: Random, size: int, has_body: bool) -> dict[str, Any]:
    """How a client behaves that expects an answer of about `size` bytes: fields of a plan."""
    if random.random() < 0.5:
        cut = random.choices(list(Cut)[1:], (15, 15 * has_body, 30, 40))[0]
        most = size / 1000 if cut is Cut.IN_RESPONSE else 0.3
        return {"cut": cut, "patience": random.uniform(0, most)}
    if random.random() < 0.06:
        return {"reads": random.choice(SLOW_BYTES), "patience": random.uniform(5, 40)}
    if has_body and random.random() < 0.06:
        return {"sends": random.choice(SLOW_SECONDS)}
    return {"keeps": random.random() < 0.5}


def _body(random: Random, target: Target, path: str, streamed: bool, long: bool) -> tuple[bytes, str]:
    """A valid body, and the text of its answer."""
    model = target.long if long else target.short
    asked: dict[str, Any] = {"model": model, "stream": streamed}
    expected = target.answers.get(model, "")
    if path == "/ask":
        asked |= {"question": QUESTION, "database": target.database}
        expected = "" if long else expected  # the prompt's settings cut a long one
    elif path == "/api/generate":
        asked["prompt"] = QUESTION
    else:
        asked["messages"] = [{"role": "user", "content": QUESTION}]
    # Half of them are repeated, half have a prompt that the engine has not read before.
    if random.random() < 0.5 and path in ("/api/generate", "/ask"):
        name = "question" if path == "/ask" else "prompt"
        asked[name] += f" {random.randrange(10**6)}"
    return json.dumps(asked).encode(), expected
