"""Names as a dialect of SQL compares and writes them."""

from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

from sqlglot import exp

from chatmetrics.components.nl2sql.identifiers import needs_quotes

# Columns that every table has, and that no schema lists.
_IMPLICIT = {
    "sqlite": frozenset({"rowid", "oid", "_rowid_"}),
    "postgres": frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}),
    "duckdb": frozenset({"rowid"}),
}
_ASCII_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a dialect, as sqlglot names it, treats names."""

    name: str

    @property
    def ignores_case(self) -> bool:
        """Whether the case of quoted names does not count. PostgreSQL distinguishes it, and folds other names."""
        return self.name != "postgres"

    @property
    def implicit_columns(self) -> frozenset[str]:
        """The keys of columns that every table has, and that no schema lists."""
        return _IMPLICIT.get(self.name, frozenset())

    def key(self, node: exp.Expr | None) -> str:
        """What an identifier in a query is compared by."""
        if not isinstance(node, exp.Identifier):
            return ""
        return node.name if node.quoted and not self.ignores_case else self.folded(node.name)

    def folded(self, name: str) -> str:
        """A name without quotes as the dialect reads it. PostgreSQL changes the case of ASCII letters only."""
        return name.lower() if self.ignores_case else name.translate(_ASCII_LOWER)

    def key_of(self, name: str) -> str:
        """What a name in the schema is compared by."""
        return name.lower() if self.ignores_case else name

    def needs_quotes(self, name: str) -> bool:
        """Whether a query must quote a name of the schema."""
        return needs_quotes(name, self.name)

    def identifier(self, name: str) -> exp.Identifier:
        """A name of the schema as a query must spell it."""
        return exp.to_identifier(name, quoted=self.needs_quotes(name))
