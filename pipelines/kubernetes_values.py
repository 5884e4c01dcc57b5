"""Values that become part of Kubernetes objects, in its own grammar, so that a wrong one is refused with its key.

KFP passes most of them on unread. A value that Kubernetes does not take would end the run on the cluster, in KFP's
driver, without a reason that `status` could show.
"""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from chatmetrics.components.settings import Settings

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity; K is not Kubernetes', but KFP's
QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkKMGTPE]|[eE][+-]?\d+)?", re.ASCII)
KFP_CPU = re.compile(r"\d+m?", re.ASCII)  # what both KFP and Kubernetes take
KFP_BYTES = re.compile(r"\d+([MGTPE]|[KMGTPE]i)?", re.ASCII)
LEAST_BYTES, MOST_BYTES = 2**20, 2**60
MOST_CORES = 10_000

NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DOMAIN = rf"{NAME}(\.{NAME})*"
WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"


def _decimal(text: str, example: str) -> Decimal:
    if not QUANTITY.fullmatch(text):
        raise ValueError(f"should be an amount as in {example}")
    from kubernetes.utils.quantity import parse_quantity  # imports all of the client, half a second

    return Decimal(parse_quantity(text))


def _written(value: object) -> str:
    """The text of a quantity; YAML reads one without a unit as a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("should be an amount as in 4 or 64Gi")
    return str(value).strip()


def _cpu(text: str) -> str:
    if not text:
        return text
    millicores = _decimal(text, "8, 0.5 or 500m") * 1000
    if not 0 < millicores <= 1000 * MOST_CORES:
        raise ValueError(f"should be above zero and at most {MOST_CORES} cores, as in 8, 0.5 or 500m")
    if millicores != int(millicores):
        raise ValueError("should be whole thousandths of a core, as in 500m")
    if KFP_CPU.fullmatch(text):
        return text
    return f"{int(millicores)}m" if millicores % 1000 else f"{int(millicores // 1000)}"


def _bytes(text: str) -> str:
    if not text:
        return text
    amount = _decimal(text, "64Gi or 1.5Gi")
    if not LEAST_BYTES <= amount <= MOST_BYTES:
        raise ValueError("should be an amount of bytes that a step can use, as in 64Gi or 500Mi")
    return text if KFP_BYTES.fullmatch(text) else in_bytes(math.ceil(amount))


def in_bytes(amount: int) -> str:
    """Return an amount of bytes as a quantity that KFP takes: the largest unit that gives a whole number."""
    units = ((unit, 2**power) for unit, power in (("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)))
    return next((f"{amount // size}{unit}" for unit, size in units if amount % size == 0), str(amount))


def _string(value: object) -> object:
    if isinstance(value, bool | int | float):
        raise ValueError('should be in quotes, as in "true" or "1": YAML reads it as a number or a truth value')
    return value


def _matching(pattern: str, most: int, rule: str) -> Callable[[str], str]:
    """Return a check of a string by one of Kubernetes' patterns; an empty one is left to the field."""

    def check(text: str) -> str:
        if text and not (re.fullmatch(pattern, text) and len(text.rpartition("/")[2]) <= most):
            raise ValueError(f"should be {rule}, at most {most} characters")
        return text

    return check


Cpu = Annotated[str, BeforeValidator(_written), AfterValidator(_cpu)]
Bytes = Annotated[str, BeforeValidator(_written), AfterValidator(_bytes)]
ObjectName = Annotated[
    str, BeforeValidator(_string), AfterValidator(_matching(DOMAIN, 253, "lowercase letters, digits, - and ."))
]
QueueName = Annotated[
    str, BeforeValidator(_string), AfterValidator(_matching(DOMAIN, 63, "lowercase letters, digits, - and ."))
]
SecretKey = Annotated[
    str,
    BeforeValidator(_string),
    AfterValidator(_matching(r"(?!\.\.|\.$)[-._A-Za-z0-9]+", 253, "letters, digits, -, _ and .")),
]
LabelKey = Annotated[
    str,
    BeforeValidator(_string),
    AfterValidator(_matching(rf"({DOMAIN}/)?{WORD}", 63, "letters, digits, -, _ and ., after an optional DOMAIN/")),
]
LabelValue = Annotated[
    str, BeforeValidator(_string), AfterValidator(_matching(WORD, 63, "letters, digits, -, _ and ."))
]


class Toleration(Settings):
    """A toleration of a pod, by the rules in Kubernetes' documentation of taints and tolerations."""

    key: LabelKey = Field("", description="Key of the taint; empty, with the operator Exists: every taint")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="Whether the value of the taint matters")
    value: LabelValue = Field("", description="Value of the taint, with the operator Equal")
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        "", description="Effect of the taint; empty: every effect"
    )
    toleration_seconds: int | None = Field(
        None, alias="tolerationSeconds", description="With NoExecute: seconds until the pod is evicted; empty: never"
    )

    @model_validator(mode="after")
    def _is_valid(self) -> Self:
        """Refuse combinations that Kubernetes refuses."""
        if not self.key and self.operator != "Exists":
            raise ValueError("a toleration without a key needs operator: Exists")
        if self.value and self.operator == "Exists":
            raise ValueError("operator: Exists takes no value; use operator: Equal")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("tolerationSeconds needs effect: NoExecute")
        return self

    def as_written(self) -> dict[str, Any]:
        """Return the toleration as it is written in a pod."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)

    def covers(self, taint: Any) -> bool:
        """Whether the toleration covers a taint of a node."""
        if self.effect not in ("", taint.effect):
            return False
        if self.operator == "Exists":
            return self.key in ("", taint.key)
        return self.key == taint.key and self.value == (taint.value or "")
