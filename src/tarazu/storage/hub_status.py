"""Is the model hub there? Asked once a process, before its client begins a minute of retries that cannot succeed.

Where it is not, the client is switched to its own offline mode: what is in its cache is still found, at once, and what is not
ends in one error.
"""

from __future__ import annotations

from functools import lru_cache

TIMEOUT_SECONDS = 5.0  # seconds for one answer; a hub that needs longer for a line of headers cannot serve a model either


@lru_cache
def hub_is_reachable() -> bool:
    """Whether the hub answers at all (any answer will do); False switches its client to what is cached."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:  # the user's own wish
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # no name service, no route, a proxy that refuses: the same to the user
        constants.HF_HUB_OFFLINE = True
        return False
    return True
