"""A change of a query that makes a name resolve."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlglot import exp

RepairKind = Literal["alias", "near_name", "on_by_key", "other_table", "added_join"]
There = Callable[[exp.Expr], exp.Expr]


@dataclass(frozen=True, slots=True)
class Repair:
    """What was changed so that a name resolves: the kind of change, and a message for people."""

    kind: RepairKind
    message: str


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a tree.

    Attributes:
        cost: how large the change is.
        repair: what people are told about it.
        apply: changes a copy of the tree, in which its argument finds a node of the original.
    """

    cost: float
    repair: Repair
    apply: Callable[[There], None]


def reference(source: exp.Expr) -> exp.Identifier:
    """A new identifier by which columns refer to a table or subquery of a FROM clause."""
    alias = source.args.get("alias")
    node = alias.this if isinstance(alias, exp.TableAlias) and alias.this else source.this
    return node.copy() if isinstance(node, exp.Identifier) else exp.to_identifier(source.alias_or_name)


def on_equality(column: exp.Expr) -> exp.EQ | None:
    """The comparison of two columns in an ON clause to which a column belongs."""
    parent = column.parent
    if not isinstance(parent, exp.EQ) or not is_in_on(column):
        return None
    return parent if isinstance(parent.this, exp.Column) and isinstance(parent.expression, exp.Column) else None


def is_in_on(node: exp.Expr) -> bool:
    """Whether a node is in an ON clause, and not in a subquery there."""
    return isinstance(node.find_ancestor(exp.Join, exp.Query), exp.Join)
