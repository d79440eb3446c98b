"""Base of every configuration model: frozen, no unknown keys. Lives on the lowest floor so that all may use it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Configuration that rejects unknown keys and cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)
