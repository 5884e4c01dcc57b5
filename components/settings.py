"""Base class of all settings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A recipe section. It is immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )
