"""Completions of a raw prompt, greedy or sampled, from an Ollama endpoint or llama.cpp's server."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from chatmetrics.components.credentials import bearer, checked_secret, tls_context
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.nl2sql.prompts.template import PromptTemplate
from chatmetrics.components.redaction import one_line
from chatmetrics.components.responder import UnexpectedAnswer, checked_json, what_answered

CONNECT_TIMEOUT = 10.0
ANSWER_TIMEOUT = 600.0  # on a few cores, a 7B model takes minutes to process a long schema

CONTEXT_EXCEEDED = "exceeds the available context size"  # in llama.cpp's message, which Ollama passes on

# llama.cpp's server closes a connection that is idle for five seconds; a request that meets this end gets no answer.
KEEP_ALIVE_SECONDS = 2.0

# A repeat penalty would change even a greedy answer, since SQL repeats words.
GREEDY = {"temperature": 0, "top_k": 1, "seed": 0, "repeat_penalty": 1.0}
# All sampling options are explicit, because the defaults of the two servers differ.
SAMPLED = {"top_k": 40, "top_p": 0.95, "min_p": 0.0, "repeat_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer.

    Attributes:
        text: the text.
        seconds: time until the end of the answer, measured by the client.
        first_token: seconds until the first token.
        prompt_tokens: tokens of the prompt.
        completion_tokens: tokens of the answer.
        truncated: whether the answer was cut at the token limit.
    """

    text: str
    seconds: float
    first_token: float
    prompt_tokens: int
    completion_tokens: int
    truncated: bool


class Client:
    """Client of the model at `endpoint`, for example http://127.0.0.1:11434. Thread-safe.

    Args:
        endpoint: base URL of an Ollama-compatible server or of llama.cpp's server.
        model: the model's name; the version can be left out, and the name too if the endpoint has only one model.
        token: bearer token, if the endpoint requires one.
        seconds: time limit of an answer.
        template: the template of the model's prompts, for `ask`. Its end of an answer ends every answer.

    Raises:
        InputError: the token cannot be sent, or SSL_CERT_FILE cannot be used.
        ServiceError: the endpoint does not answer, is neither of the two, or does not have the model.
    """

    def __init__(
        self,
        endpoint: str,
        model: str = "",
        token: str = "",
        seconds: float = ANSWER_TIMEOUT,
        template: PromptTemplate | None = None,
    ) -> None:
        self._template = template
        self._stop = [template.stop] if template and template.stop else []
        self._endpoint = (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")
        timeout = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT)
        headers = bearer(checked_secret(token, "the token (CHATMETRICS_TOKEN)"))
        # trust_env=False, because a proxy from the environment would be used for 127.0.0.1 too.
        limits = httpx.Limits(keepalive_expiry=KEEP_ALIVE_SECONDS)
        self._http = httpx.Client(
            timeout=timeout, trust_env=False, headers=headers, verify=tls_context(), limits=limits
        )
        self._is_ollama = self._detect_ollama()
        self.model = self._find_model(model) if self._is_ollama else model

    def generate(
        self,
        prompt: str,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        min_p: float = 0.0,
        grammar: str = "",
    ) -> Answer:
        """Continue `prompt` (without BOS text: the server adds the token), up to EOS or `max_tokens`.

        Args:
            prompt: the text.
            max_tokens: maximum number of tokens of the answer.
            temperature: temperature of sampling; 0 is greedy.
            min_p: least probability of a sampled token, as a share of the most likely one's.
            seed: seed of sampling. Equal seeds give equal answers, as far as the server's arithmetic is deterministic.
            grammar: grammar of the answer in GBNF, which only llama.cpp's server accepts; empty for any text.

        Raises:
            ServiceError: the endpoint stopped answering, or refused, for example a prompt longer than its context.
        """
        assert not (grammar and self._is_ollama), "Ollama ignores a grammar"
        started = time.monotonic()
        first_token, text, last = 0.0, "", dict[str, Any]()
        options = sampling_options(temperature, seed, min_p) | ({"grammar": grammar} if grammar else {})
        for last in self._events(prompt, max_tokens, options):
            first_token = first_token or time.monotonic() - started
            text += last["response" if self._is_ollama else "content"]
        counts = self._counts(last)
        return Answer(text, time.monotonic() - started, first_token, *counts)

    def ask(
        self,
        system: str,
        instruction: str,
        input: str,
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        min_p: float = 0.0,
        grammar: str = "",
    ) -> Answer:
        """Answer a question with the prompt of training; see `PromptTemplate.prompt` and `generate`."""
        assert self._template, "a client that asks questions is given their template"
        prompt = self._template.prompt(system, instruction, input)
        return self.generate(prompt, max_tokens, temperature, seed, min_p, grammar)

    def count_tokens(self, prompt: str) -> int | None:
        """Number of tokens of `prompt`, including BOS; None if it is longer than the endpoint's context.

        Ollama has no endpoint for this, so it processes the prompt, which it then caches for the answer that follows.
        """
        if self._is_ollama:
            request = {**ollama_request(self.model, prompt, 1), "stream": False}
            response = self._request("POST", "/api/generate", request)
            if response.status_code == httpx.codes.BAD_REQUEST and CONTEXT_EXCEEDED in response.text:
                return None
            return int(self._checked(response, "prompt_eval_count")["prompt_eval_count"])
        request = {"content": prompt, "add_special": True}
        return len(self._checked(self._request("POST", "/tokenize", request), "tokens")["tokens"])

    def _events(self, prompt: str, max_tokens: int, sampling: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the server's messages while it answers; the last one has the token counts."""
        options: dict[str, Any] = {**sampling, **({"stop": self._stop} if self._stop else {})}
        if self._is_ollama:
            path, body = "/api/generate", ollama_request(self.model, prompt, max_tokens, options)
            connection = "keep-alive"
        else:
            path, body = "/completion", {"prompt": prompt, "n_predict": max_tokens, "cache_prompt": True, **options}
            # llama.cpp closes a keep-alive connection after a hundred requests, without announcing it in a stream.
            connection = "close"
        url, headers = self._endpoint + path, {"Connection": connection}
        with (
            self._errors(),
            self._http.stream("POST", url, json={**body, "stream": True}, headers=headers) as response,
        ):
            if not response.is_success:
                response.read()
                self._checked(response)
            for line in response.iter_lines():
                if text := line.removeprefix("data: ").strip():
                    yield self._event(response, text)

    def _event(self, response: httpx.Response, line: str) -> dict[str, Any]:
        """One message of a streamed answer."""
        expected = "response" if self._is_ollama else "content"
        try:
            event = checked_json(response.status_code, response.headers, line.encode())
        except UnexpectedAnswer as error:
            raise self._other_answer(error) from error
        if "error" in event:
            raise ServiceError(f"{self._endpoint} failed while answering: {_error_message(line)}")
        if not isinstance(event.get(expected), str):
            raise self._other_answer(what_answered(response.status_code, response.headers, line.encode()))
        return event

    def _counts(self, last: dict[str, Any]) -> tuple[int, int, bool]:
        """Tokens of prompt and answer, and whether the answer was truncated, from the last message."""
        if not last or not (self._is_ollama or last.get("stop")):
            raise ServiceError(f"{self._endpoint} closed the connection in the middle of an answer")
        if not self._is_ollama:
            try:
                truncated = last["stop_type"] == "limit" or last["truncated"]
                return last["tokens_evaluated"], last["tokens_predicted"], truncated
            except KeyError as error:
                raise self._other_answer(f"a message without {error}") from error
        # `done` is false if Ollama aborted a repetitive or malformed answer; then there are no counts either.
        truncated = not last.get("done") or last.get("done_reason") == "length"
        return last.get("prompt_eval_count", 0), last.get("eval_count", 0), truncated

    def _detect_ollama(self) -> bool:
        version = self._get("/api/version")
        if version.status_code == httpx.codes.UNAUTHORIZED:
            raise ServiceError(f"{self._endpoint} requires a token: {_error_message(version.text)}")
        if version.is_success and _is_object_with(version, "version"):
            return True
        health = self._get("/health")
        if health.is_success and _is_object_with(health, "status"):
            return False
        what = what_answered(version.status_code, version.headers, version.content)
        raise ServiceError(
            f"{self._endpoint} is neither an Ollama endpoint nor llama.cpp's server: it sent {what}; check the address"
        )

    def _find_model(self, model: str) -> str:
        response = self._get("/api/tags")
        try:
            names = [str(entry["name"]) for entry in self._checked(response, "models")["models"] or ()]
        except (LookupError, TypeError) as error:
            raise self._other_answer(what_answered(response.status_code, response.headers, response.content)) from error
        exact = [name for name in names if not model or name in (model, f"{model}:latest")]
        candidates = _stable(exact) or [name for name in names if name.partition(":")[0] == model]
        if len(candidates) == 1:
            return candidates[0]
        problem = f"has no model {model!r}" if model else "has no model" if not names else "has several models"
        raise ServiceError(f"{self._endpoint} {problem}; it has: {', '.join(names) or 'none'}")

    def _get(self, path: str) -> httpx.Response:
        return self._request("GET", path)

    def _checked(self, response: httpx.Response, *expected: str) -> dict[str, Any]:
        """The JSON object in a response, which has the expected fields."""
        try:
            answer = checked_json(
                response.status_code, response.headers, response.content, expected * response.is_success
            )
        except UnexpectedAnswer as error:
            raise self._other_answer(error) from error
        if not response.is_success:
            raise ServiceError(f"{self._endpoint} refused ({response.status_code}): {_error_message(response.text)}")
        return answer

    def _other_answer(self, what: object) -> ServiceError:
        return ServiceError(f"{self._endpoint} sent {what} instead of a model's answer; check the address")

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        with self._errors():
            return self._http.request(method, self._endpoint + path, json=body)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            raise ServiceError(f"{self._endpoint} did not answer in time") from error
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: not a host name
            raise ServiceError(
                f"cannot reach {self._endpoint}: {one_line(error)}; is the model being served there?"
            ) from error
        except httpx.HTTPError as error:
            raise ServiceError(f"{self._endpoint}: the answer cannot be read ({one_line(error)})") from error


def sampling_options(temperature: float, seed: int, min_p: float = 0.0) -> dict[str, Any]:
    """Sampling options for both servers; a temperature of 0 is greedy."""
    return {**SAMPLED, "temperature": temperature, "seed": seed, "min_p": min_p} if temperature else dict(GREEDY)


def ollama_request(model: str, prompt: str, max_tokens: int, options: Mapping[str, Any] = GREEDY) -> dict[str, Any]:
    """Body of a request to Ollama's /api/generate that continues a raw prompt, by default greedily."""
    return {
        "model": model,
        "prompt": prompt,
        "raw": True,
        # By default, Ollama silently truncates a prompt that is too long.
        "truncate": False,
        "keep_alive": -1,
        "options": {**options, "num_predict": max_tokens},
    }


def _stable(names: list[str]) -> list[str]:
    """The names of models; of one that is listed as `name:latest` and with its version, as a pod does, the former."""
    stems = {name.partition(":")[0] for name in names}
    latest = [name for name in names if name.endswith(":latest")]
    return latest if len(stems) == len(latest) == 1 else names


def _is_object_with(response: httpx.Response, field: str) -> bool:
    try:
        return bool(checked_json(response.status_code, response.headers, response.content, (field,)))
    except UnexpectedAnswer:
        return False


def _error_message(body: str) -> str:
    """The message in llama.cpp's {"error": {"message": "..."}} or Ollama's {"error": "..."}, which can contain it."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return one_line(body, 200)
    return str(error.get("message", error)) if isinstance(error, dict) else _error_message(str(error))
