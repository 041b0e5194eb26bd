"""Whether the model hub is reachable. Asked once a process.

Without a network the hub's client retries for about a minute before it fails. So where the hub is
not reachable, the client is put into its own offline mode: it then finds what is cached at once,
and reports anything else as one error.
"""

from __future__ import annotations

from functools import lru_cache

TIMEOUT_SECONDS = 5.0  # for one reply; a hub that is slower than this cannot serve a model either


@lru_cache
def hub_is_reachable() -> bool:
    """Whether the hub replies. If not, its client uses only what is cached."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:  # set by the user
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT_SECONDS)
    except Exception:  # no name service, no route, a proxy that refuses
        constants.HF_HUB_OFFLINE = True
        return False
    return True
