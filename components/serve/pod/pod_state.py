"""What the pod serves at the moment: written by the supervisor, read by the proxy."""

import time
from dataclasses import dataclass, field

from chatmetrics.components.serve.pod.admission import Admitted


@dataclass
class PodState:
    """Plain attributes, each replaced as a whole, so that two threads need no lock.

    Attributes:
        admitted: by the name that requests use, what passed its acceptance test in this pod.
        loaded: whether all of it is loaded now.
        started: whether it ever was.
        draining: whether the pod is about to end.
        waiting_for: what is missing while it is not ready.
        answered: when Ollama last answered, by the monotonic clock.
        late: when an answer was last not there in time.
    """

    admitted: dict[str, Admitted] = field(default_factory=dict)
    loaded: bool = False
    started: bool = False
    draining: bool = False
    waiting_for: str = "Ollama"
    answered_at: float = 0.0
    timed_out_at: float = 0.0

    def note_answer(self) -> None:
        """Ollama has answered, so it does not hang."""
        self.answered_at = time.monotonic()

    def note_timeout(self) -> None:
        """An answer was not there in time."""
        self.timed_out_at = time.monotonic()

    @property
    def ready(self) -> bool:
        """Whether requests should be sent here."""
        return self.loaded and not self.draining

    def find(self, name: object) -> Admitted | None:
        """The model of a request: by its released name, that with its version, or none where there is only one."""
        if name in (None, "") and len(self.admitted) == 1:
            return next(iter(self.admitted.values()))
        found = (admitted for short, admitted in self.admitted.items() if name in (short, admitted.model.name))
        return next(found, None)
