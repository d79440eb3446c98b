"""The Hugging Face hub: telling "not reached" from everything else that may go wrong there."""

from __future__ import annotations

_NOT_REACHED = frozenset(
    {"ConnectionError", "ConnectTimeout", "OfflineModeIsEnabled", "Timeout", "TimeoutError", "TransportError"}
)


def hub_error(error: Exception) -> str | None:
    """One line on what went wrong at the hub; None if the error is not one of the hub or of the network.

    Which classes are raised where there is no network differs between versions of `huggingface_hub`, which changed the
    library below it twice; so their names are asked for.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    if names & _NOT_REACHED:
        return f"the hub was not reached: {reason}"
    return reason if isinstance(error, OSError) or "HTTPError" in names else None
