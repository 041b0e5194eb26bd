"""Send one prompt to an OpenAI-compatible /chat/completions endpoint, with retries.

The standard library's HTTP client is enough. Redirects are not followed, because the API key would
travel with them.
"""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from tarazu.engine.progress import log
from tarazu.errors import TarazuError, UserError

RETRYABLE_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
MAX_REPLY_BYTES = 4 * 2**20
MAX_PAUSE_SECONDS = 60.0
MAX_REPLY_TOKENS = 1024
_HINTS = {
    400: "check --model; the endpoint's own words are above",
    401: "check the key: --api-key-env names the variable that holds it",
    403: "check the key and its permissions",
    404: "check --endpoint and --model",
}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args: object, **_kwargs: object) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """An endpoint and how to retry it.

    Args:
        url: URL of the API (".../v1") or of its /chat/completions.
        model: the endpoint's name for the model.
        key: API key, sent as a bearer token and never written anywhere.
        timeout: seconds without a byte after which an attempt fails.
        attempts: maximum attempts for one prompt.
        pause: seconds before the second attempt; doubled for each further one.

    Raises:
        UserError: the URL is not an HTTP URL, or it holds a password.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    attempts: int = 5
    pause: float = 1.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"not the URL of an API: {self.url!r}",
                location="--endpoint",
                hint="give for example http://localhost:8000/v1",
            )
        if parts.username or parts.password:
            raise UserError(
                "the URL holds a password",
                location="--endpoint",
                hint="put the key into an environment variable and name it: --api-key-env",
            )

    @property
    def address(self) -> str:
        """URL of /chat/completions."""
        url = self.url.rstrip("/")
        return url if url.endswith("/chat/completions") else url + "/chat/completions"

    def ask(self, prompt: str) -> str:
        """Send one user message and return the raw body of the reply.

        Raises:
            TarazuError: the endpoint refuses, or every attempt fails.
        """
        failure = ""
        for attempt in range(self.attempts):
            if attempt:
                # exponential backoff, with jitter so that clients do not retry in step
                pause = self.pause * 2 ** (attempt - 1) * random.uniform(1, 1.25)
                pause = min(pause, MAX_PAUSE_SECONDS)
                time.sleep(pause)
                log(f"judge: {failure}; retried after {pause:.1f} s")
            try:
                return self._post(prompt)
            except urllib.error.HTTPError as error:
                if error.code not in RETRYABLE_STATUS:
                    raise self._refusal(error) from None
                failure = f"the endpoint answered {error.code}"
                self._respect_retry_after(error)
            except (OSError, http.client.HTTPException) as error:  # no connection, or timed out
                reason = getattr(error, "reason", None) or error
                description = f": {reason}" if str(reason) else ""
                failure = f"no reply ({type(reason).__name__}{description})"
        raise TarazuError(
            f"{failure}, {self.attempts} times",
            location=self.address,
            hint="the verdicts so far are kept; run the same command again later",
        )

    def _post(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "tarazu",
        }
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.address, json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as reply:
            body_bytes: bytes = reply.read(MAX_REPLY_BYTES)
        return body_bytes.decode("utf-8", "replace")

    def _respect_retry_after(self, error: urllib.error.HTTPError) -> None:
        """Wait as long as a busy server asks for."""
        seconds = error.headers.get("Retry-After", "")
        if seconds.isdigit():
            time.sleep(min(float(seconds), MAX_PAUSE_SECONDS))

    def _refusal(self, error: urllib.error.HTTPError) -> TarazuError:
        """The error for a status that retrying does not change."""
        body = error.read(500).decode("utf-8", "replace").strip()
        hint = "see the endpoint's own words above"
        if 300 <= error.code < 400:
            hint = "check --endpoint; redirects are not followed"
        return TarazuError(
            f"the endpoint refused ({error.code}): {body or error.reason}",
            location=self.address,
            hint=_HINTS.get(error.code, hint),
        )


def content(body: str) -> str | None:
    """The text of a reply's first choice; None if the body is not a chat completion."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None
