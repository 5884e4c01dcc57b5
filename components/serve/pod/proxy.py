"""The proxy to Ollama: paths for inference and lists of models, but none for managing models."""

import json
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from chatmetrics.components.serve.error_responses import error_message, error_response
from chatmetrics.components.serve.pod import openai_api
from chatmetrics.components.serve.pod.admission import Admitted
from chatmetrics.components.serve.pod.engine.client import Answer
from chatmetrics.components.serve.pod.engine.engine import Engine, turn
from chatmetrics.components.serve.pod.metrics import Metrics
from chatmetrics.components.serve.pod.paths import MODEL
from chatmetrics.components.serve.pod.pod_request import Handlers, PodRequest
from chatmetrics.components.serve.pod.pod_state import PodState
from chatmetrics.components.serve.pod.relay import Relay
from chatmetrics.components.serve.pod.request_checks import FIXED_FIELDS, check_fields, given_fields
from chatmetrics.components.serve.release import Release

Json = dict[str, Any]

INCOMPLETE = "Ollama stopped the answer before its end: it repeats itself, or is not valid text"
MANIFEST_HEADER = "X-Manifest-Sha256"


class Proxy:
    """Handlers of Ollama's paths and of OpenAI's chat completions.

    Args:
        release: Limits of requests.
        state: The served models.
        metrics: Where tokens are counted.
        engine: Answers the requests.
    """

    def __init__(self, release: Release, state: PodState, metrics: Metrics, engine: Engine) -> None:
        self._release, self._state, self._metrics, self._engine = release, state, metrics, engine

    def handlers(self) -> Handlers:
        """Handlers of the paths that are passed on to Ollama, and of the acceptance test's."""
        return {
            ("POST", "/api/generate"): self._answer,
            ("POST", "/api/chat"): self._answer,
            ("POST", openai_api.PATH): self._answer,
            ("GET", "/api/version"): self._version,
            ("GET", "/api/tags"): self._tags,
            ("POST", "/api/show"): self._show,
            ("GET", "/v1/models"): self._models,
            ("GET", MODEL): self._described_model,
            ("GET", "/acceptance-test"): self._acceptance_test,
        }

    async def _version(self, request: PodRequest) -> Response:
        return JSONResponse(await self._engine.json("GET", "/api/version"))

    async def _tags(self, request: PodRequest) -> Response:
        """The models under their stable names, which stay valid when a version is replaced, and with their versions."""
        listed = {entry["name"]: entry for entry in (await self._engine.json("GET", "/api/tags"))["models"]}
        entries = [
            listed[admitted.model.name] | {"name": name, "model": name}
            for short, admitted in self._state.admitted.items()
            for name in dict.fromkeys((f"{short}:latest", admitted.model.name))
            if admitted.model.name in listed
        ]
        return JSONResponse({"models": entries})

    async def _show(self, request: PodRequest) -> Response:
        """What clients read about a model: its context length, what it is capable of, and its template."""
        body = request.json()
        admitted = self._model({"model": body.get("model") or body.get("name")})
        shown = await self._engine.json("POST", "/api/show", {"model": admitted.model.name})
        length = admitted.model.context_length
        about = {
            name: length if name.endswith(".context_length") else value
            for name, value in shown.get("model_info", {}).items()
        }
        return JSONResponse(
            {name: shown[name] for name in ("details", "template", "modified_at") if name in shown}
            | {"parameters": f"num_ctx {length}", "model_info": about, "capabilities": ["completion"]}
        )

    async def _models(self, request: PodRequest) -> Response:
        names = (name for short, admitted in self._state.admitted.items() for name in (short, admitted.model.name))
        return JSONResponse({"object": "list", "data": list(map(openai_api.model_object, names))})

    async def _described_model(self, request: PodRequest) -> Response:
        self._model({"model": request.name})
        return JSONResponse(openai_api.model_object(request.name))

    async def _acceptance_test(self, request: PodRequest) -> Response:
        """Questions and answers of the models' acceptance tests, for the smoke test."""
        if request.client in self._release.client_databases:
            raise HTTPException(403, "only a client that may use all databases can read the acceptance test")
        return JSONResponse([asked for admitted in self._state.admitted.values() for asked in _questions(admitted)])

    async def _answer(self, request: PodRequest) -> Response:
        path, body = request.path, given_fields(request.json())
        streamed = bool(body.get("stream", path != openai_api.PATH))
        translated = openai_api.Chunks(openai_api.wants_usage(body)) if path == openai_api.PATH else None
        if translated:
            path, body = "/api/chat", openai_api.chat_request(body)
        admitted = self._model(body)
        request.note(model=admitted.model.name)
        ignored = check_fields(body, admitted.model.context_length, admitted.model.template.content)
        headers = ignored | manifest_header(admitted)
        body |= {**FIXED_FIELDS, "model": admitted.model.name, "stream": streamed}
        deadline, place = self._engine.deadline(), request.place
        await turn(place, body["model"], deadline)
        if streamed:
            answer = await self._engine.opened(path, body, deadline, place)
            if answer.status != 200:
                content = await self._engine.rest(answer, deadline)
                return self._whole(answer, content, admitted.model.name, bool(translated))
            ending = partial(self._ending, admitted.model.name)
            return Relay(self._engine, answer, deadline, ending, place, self._state, translated, headers)
        answer, content = await request.unless_gone(self._engine.whole(path, body, deadline))
        response = self._whole(answer, content, admitted.model.name, bool(translated))
        response.headers.update(headers)
        return response

    def _whole(self, answer: Answer, content: bytes, model: str, translated: bool) -> Response:
        if answer.status == 200:
            self._state.note_answer(model)
            whole = self._counted(model, content)
            if translated:
                return JSONResponse(openai_api.completion(whole))
        elif translated:
            return _refused(answer.status, content)
        return Response(content, answer.status, media_type=answer.content_type)

    def _ending(self, model: str, end: bytes) -> str:
        """Count the tokens of a streamed answer from its end. Returns an error message if the answer is incomplete."""
        self._state.note_answer(model)
        try:
            self._counted(model, end.strip().rpartition(b"\n")[2])
        except HTTPException as error:
            return error.detail
        return ""

    def _counted(self, model: str, end: bytes) -> Json:
        """Parse an answer, or the last line of a streamed one, and count its tokens.

        Raises:
            HTTPException: The answer is incomplete.
        """
        try:
            answer: Json = json.loads(end)
            complete = answer["done"]
        except (ValueError, KeyError, TypeError):
            complete = False
        if not complete:
            raise HTTPException(502, INCOMPLETE)
        self._metrics.count_tokens(model, answer)
        return answer

    def _model(self, body: Json) -> Admitted:
        if admitted := self._state.find(body.get("model")):
            return admitted
        names = ", ".join(sorted(admitted.model.name for admitted in self._state.admitted.values()))
        raise HTTPException(404, f"model {body.get('model')!r} not found; served here: {names}")


def _questions(admitted: Admitted) -> list[Json]:
    if admitted.acceptance_test is None or admitted.score is None:
        return []
    wrong = {mistake.id for mistake in admitted.score.wrong}
    return [
        {
            "model": admitted.model.name,
            "id": question.id,
            "prompt": admitted.model.template.prompt(question.system, question.instruction, question.input),
            "max_tokens": admitted.acceptance_test.max_tokens,
            "answer": admitted.score.answers[question.id],
            "right": question.id not in wrong,
        }
        for question in admitted.acceptance_test.questions
    ]


def _refused(status: int, content: bytes) -> Response:
    """An error of Ollama in OpenAI's format."""
    return error_response(openai_api.PATH, status, error_message(content))


def manifest_header(admitted: Admitted) -> dict[str, str]:
    """A header that names the manifest of the model that answers; empty if it is not known."""
    return {MANIFEST_HEADER: admitted.model.manifest_sha256} if admitted.model.manifest_sha256 else {}
