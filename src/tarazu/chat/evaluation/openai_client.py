"""One question to an OpenAI-compatible /chat/completions endpoint: patient with busy servers, plain about refusals.

The standard library's client is enough. Redirects are not followed: the key would travel with them.
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
MAX_REPLY_BYTES = 4 * 2**20  # bytes of a reply that are read
MAX_PAUSE_SECONDS = 60.0  # seconds


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args, **_kwargs) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, and how patiently.

    Args:
        url: of the API (".../v1") or of its /chat/completions.
        model: the name that the endpoint knows the model by.
        key: sent as a bearer token; never written anywhere.
        timeout: seconds without a byte after which an attempt is given up.
        attempts: tries of one question.
        pause: seconds before the second try; doubled for each further one.
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
                f"not the address of an API: {self.url!r}",
                location="--endpoint",
                hint="give for example http://localhost:8000/v1",
            )
        if parts.username or parts.password:
            raise UserError(
                "the address holds a password",
                location="--endpoint",
                hint="put the key into a variable and name it: --api-key-env",
            )

    @property
    def address(self) -> str:
        url = self.url.rstrip("/")
        return url if url.endswith("/chat/completions") else url + "/chat/completions"

    def ask(self, prompt: str) -> str:
        """The raw body of the reply to one user message. Raises `TarazuError` when the endpoint refuses or stays away."""
        trouble = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(
                    pause := min(
                        self.pause * 2 ** (attempt - 1) * random.uniform(1, 1.25), MAX_PAUSE_SECONDS
                    )
                )
                log(f"judge: {trouble}; asked again after {pause:.1f} s")
            try:
                return self._post(prompt)
            except urllib.error.HTTPError as error:
                if error.code not in RETRYABLE_STATUS:
                    raise self._refusal(error) from None
                trouble = f"the endpoint answered {error.code}"
                self._respect_retry_after(error)
            except (
                OSError,
                http.client.HTTPException,
            ) as error:  # no connection, cut off, timed out
                reason = getattr(error, "reason", None) or error
                trouble = (
                    f"no reply ({type(reason).__name__}: {reason})"
                    if str(reason)
                    else f"no reply ({type(reason).__name__})"
                )
        raise TarazuError(
            f"{trouble}, {self.attempts} times",
            location=self.address,
            hint="what is judged so far is kept; run the same command again later",
        )

    def _post(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 1024,
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
            return reply.read(MAX_REPLY_BYTES).decode("utf-8", "replace")

    def _respect_retry_after(self, error: urllib.error.HTTPError) -> None:
        """Waits as long as a busy server asks for."""
        wanted = error.headers.get("Retry-After", "")
        if wanted.isdigit():
            time.sleep(min(float(wanted), MAX_PAUSE_SECONDS))

    def _refusal(self, error: urllib.error.HTTPError) -> TarazuError:
        said = error.read(500).decode("utf-8", "replace").strip()
        advice = {
            401: "check the key: --api-key-env names the variable that holds it", 403: "check the key and what it may use",
            404: "check --endpoint and --model", 400: "check --model; the endpoint's own words are above",
        }.get(error.code, "check --endpoint; redirects are not followed" if 300 <= error.code < 400 else "see the endpoint's own words above")  # fmt: skip
        return TarazuError(
            f"the endpoint refused ({error.code}): {said or error.reason}",
            location=self.address,
            hint=advice,
        )


def content(body: str) -> str | None:
    """The text of a reply's first choice; None when the body is not that of a chat completion."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return text if isinstance(text, str) else None
