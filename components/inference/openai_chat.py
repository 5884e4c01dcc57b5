"""Greedy answers from an endpoint with OpenAI's chat protocol, such as a teacher's API or vLLM."""

import time

import httpx2 as httpx  # the HTTP library of openai 3
import openai
from openai.types.chat import ChatCompletionMessageParam

from chatmetrics.components.credentials import read_secret, tls_context
from chatmetrics.components.errors import ServiceError
from chatmetrics.components.inference.client import ANSWER_TIMEOUT, Answer
from chatmetrics.components.redaction import one_line
from chatmetrics.components.responder import what_answered

KEY_VARIABLE = "OPENAI_API_KEY"
RETRIES = 5  # with backoff, or after the time in the server's Retry-After header


class OpenAIChat:
    """Client of `model` at `endpoint`, for example https://api.deepseek.com/v1. Thread-safe.

    The key is taken from the environment variable OPENAI_API_KEY; an endpoint in a cluster may not need one.

    Args:
        endpoint: base URL, ending in the protocol's version.
        model: the model's name at the endpoint.

    Raises:
        InputError: the key cannot be sent, or SSL_CERT_FILE cannot be used.
        ServiceError: the endpoint is not a URL.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        self._endpoint = endpoint
        self.model = model
        key = read_secret(KEY_VARIABLE) or "none"
        tls_context()  # names a wrong SSL_CERT_FILE; the client would fail with a traceback
        try:
            self._client = openai.OpenAI(base_url=endpoint, api_key=key, timeout=ANSWER_TIMEOUT, max_retries=RETRIES)
        except httpx.InvalidURL as error:
            raise ServiceError(f"{endpoint} is not a URL ({one_line(error)})") from error

    def ask(self, system: str, instruction: str, input: str, max_tokens: int = 256) -> Answer:
        """Answer a question with the prompt of training as a chat: schema, then instruction and question.

        Raises:
            ServiceError: the endpoint is not available, refused, or stopped answering.
        """
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"{instruction}\n{input}"}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        started = time.monotonic()
        first_token, text, reason = 0.0, "", ""
        prompt_tokens = completion_tokens = 0
        try:
            chunks = self._client.chat.completions.create(
                model=self.model,
                messages=messages,
                max_tokens=max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            self._check_answers(chunks.response)
            for chunk in chunks:
                first_token = first_token or time.monotonic() - started
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
                if chunk.usage:
                    prompt_tokens, completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        except openai.APIStatusError as error:  # `from None`: a traceback would show the request's headers
            raise ServiceError(f"{self._endpoint} refused ({error.status_code}): {one_line(error)}") from None
        except openai.APITimeoutError:
            raise ServiceError(f"{self._endpoint} did not answer in time") from None
        except (openai.OpenAIError, UnicodeError) as error:  # UnicodeError: not a host name
            raise ServiceError(f"cannot reach {self._endpoint}: {one_line(error)}") from None
        if not reason:
            raise ServiceError(f"{self._endpoint} closed the connection in the middle of an answer")
        return Answer(
            text, time.monotonic() - started, first_token, prompt_tokens, completion_tokens, reason == "length"
        )

    def _check_answers(self, response: httpx.Response) -> None:
        """Refuse what is not a stream of events: the client would take it for an answer without text.

        Raises:
            ServiceError: something else answered.
        """
        if "event-stream" not in response.headers.get("Content-Type", "event-stream"):
            what = what_answered(response.status_code, response.headers, response.read())
            raise ServiceError(f"{self._endpoint} sent {what} instead of a stream of answers; check the address")
