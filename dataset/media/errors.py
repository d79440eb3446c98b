"""What is wrong with a clip's media."""

from __future__ import annotations

from ..reasons import REASONS, ReasonCode


class MediaError(ValueError):
    """A clip's media cannot be read as it should.

    Args:
        reason: code of `reasons.REASONS`, as rows carry it.
        detail: one sentence with the clip, the file and what was found.
    """

    def __init__(self, reason: ReasonCode, detail: str) -> None:
        super().__init__(detail)
        assert reason in REASONS, reason
        self.reason: ReasonCode = reason
        self.detail = detail
