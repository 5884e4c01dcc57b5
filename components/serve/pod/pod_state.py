"""The pod's current state, written by the supervisor and read by the proxy."""

import time
from dataclasses import dataclass, field

from chatmetrics.components.serve.pod.admission import Admitted


@dataclass
class PodState:
    """State that two threads share without a lock: attributes and items are only ever replaced as a whole.

    Attributes:
        admitted: Models that were admitted in this pod, by the name that requests use.
        loaded: Whether all models are loaded now.
        started: Whether all models were loaded at least once.
        draining: Whether the pod is shutting down.
        arriving: Number of requests for the models whose body is arriving. Only the event loop's thread changes it.
        waiting_for: What the pod waits for while it is not ready.
        confirmed_at: Time at which the last check that found all models loaded began, on the monotonic clock.
        answered_at: Time of the last answer of each model, on the monotonic clock.
        timed_out_at: Time of the last request to each model that timed out, on the monotonic clock.
    """

    admitted: dict[str, Admitted] = field(default_factory=dict)
    loaded: bool = False
    started: bool = False
    draining: bool = False
    arriving: int = 0
    waiting_for: str = "Ollama"
    confirmed_at: float = 0.0
    answered_at: dict[str, float] = field(default_factory=dict)
    timed_out_at: dict[str, float] = field(default_factory=dict)

    def note_answer(self, model: str) -> None:
        """Record that a model, by its name in Ollama, answered, so it does not hang."""
        self.answered_at[model] = time.monotonic()

    def note_timeout(self, model: str) -> None:
        """Record that a request to a model timed out."""
        self.timed_out_at[model] = time.monotonic()

    def answered_since(self, model: str, since: float) -> bool:
        """Whether a model has answered after this time of the monotonic clock."""
        return self.answered_at.get(model, 0.0) > since

    @property
    def ready(self) -> bool:
        """Whether the pod accepts requests."""
        return self.loaded and not self.draining

    def find(self, name: object) -> Admitted | None:
        """Find a model by `name`, `name:latest` or `name:version`; the name may be empty if there is only one model."""
        if name in (None, "") and len(self.admitted) == 1:
            return next(iter(self.admitted.values()))
        found = (
            admitted
            for short, admitted in self.admitted.items()
            if name in (short, f"{short}:latest", admitted.model.name)
        )
        return next(found, None)
