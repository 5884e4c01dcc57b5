"""The schemas in the teacher's prompts, of at most `schema_tokens` tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from chatmetrics.components.distill.settings import DistillSettings
from chatmetrics.components.errors import InputError
from chatmetrics.components.nl2sql.linking.found_values import FoundValue
from chatmetrics.components.nl2sql.linking.pruning import Pruner
from chatmetrics.components.nl2sql.schema import Schema


@dataclass(frozen=True, slots=True)
class _Rendered:
    schema: Schema
    text: str
    fits: bool


class TeacherSchemas:
    """Schema texts by database. All questions have the whole schema if it fits, so that an endpoint can cache it.

    Args:
        settings: form and maximum length of the texts.
        read: reads the schema of a database, with sample values.
        count_tokens: counts the tokens of a text.
        find_values: finds the values of a database that a text names; called if the schema is pruned.
    """

    def __init__(
        self,
        settings: DistillSettings,
        read: Callable[[str], Schema],
        count_tokens: Callable[[str], int],
        find_values: Callable[[str, str], Sequence[FoundValue]] = lambda db_id, about: (),
    ) -> None:
        self._form, self._limit = settings.schema_form, settings.schema_tokens
        self._read, self._count_tokens, self._find_values = read, count_tokens, find_values
        self._rendered: dict[str, _Rendered] = {}
        # The requests of a question are built once to send them, and again to find their answers.
        self._part = cache(self._pruned)
        self._pruner = cache(lambda db_id: Pruner(self.whole(db_id), self._form))

    def whole(self, db_id: str) -> Schema:
        """The whole schema of a database.

        Raises:
            InputError: it cannot be read.
        """
        return self._render(db_id).schema

    def text(self, db_id: str, about: str) -> str:
        """The schema text, or the part of it that a prompt is about.

        Args:
            db_id: the database.
            about: the question, or the names of tables.

        Raises:
            InputError: the database cannot be read, or not even one of its tables fits.
        """
        rendered = self._render(db_id)
        return rendered.text if rendered.fits else self._part(db_id, about)

    def _pruned(self, db_id: str, about: str) -> str:
        found = self._find_values(db_id, about)
        part = self._pruner(db_id).prune(about, lambda text: self._count_tokens(text) - self._limit, found)
        if part is None:
            raise InputError(f"{db_id}: not even one table fits distill.schema_tokens={self._limit}; raise it")
        return part.render(self._form)

    def _render(self, db_id: str) -> _Rendered:
        if db_id not in self._rendered:
            schema = self._read(db_id)
            text = schema.render(self._form)
            # A text has at most as many tokens as bytes, so those of a short one need not be counted.
            fits = len(text.encode()) <= self._limit or self._count_tokens(text) <= self._limit
            self._rendered[db_id] = _Rendered(schema, text, fits)
        return self._rendered[db_id]
