"""What every step's settings have in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A recipe section: immutable, and an unknown key is an error rather than ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())
