"""Notices: what a study tells a command or a web address, of failures, of a diverged baseline and of its end."""

import base64
import http.client
import json
import logging
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from urllib.parse import unquote, urlsplit

from gatelab.text import without_secrets

SECONDS = 30.0
"""A command or an address has so long."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """What a notice is about."""

    event: str
    """failure, baseline diverged or end."""
    study: str
    text: str
    """What happened, for people."""


def notifier(targets: Sequence[str]) -> Callable[[Event], None]:
    """Return a function that tells all targets of an event, without waiting for them.

    An address (http://…, https://…) gets the event as JSON in a POST request. Anything else is a shell command: it gets
    the JSON on its standard input, and the fields as GATELAB_EVENT, GATELAB_STUDY and GATELAB_TEXT. A target that
    cannot be told is logged as a warning and changes nothing.
    """

    def tell(event: Event) -> None:
        for target in targets:
            # Not a daemon: the process waits for its last notice.
            threading.Thread(target=_tell, args=(target, event), name="notice").start()

    return tell


def _tell(target: str, event: Event) -> None:
    content = json.dumps(asdict(event)).encode()
    try:
        if target.startswith(("http://", "https://")):
            with urllib.request.urlopen(_request(target, content), timeout=SECONDS):
                return
        names = {f"GATELAB_{name.upper()}": value for name, value in asdict(event).items()}
        subprocess.run(
            target, shell=True, input=content, env=os.environ | names, timeout=SECONDS, check=True, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        logger.warning("--notify %s: exit code %d", _shown(target), error.returncode)
    except subprocess.TimeoutExpired:
        logger.warning("--notify %s: not done after %g s", _shown(target), SECONDS)
    except (OSError, ValueError, http.client.HTTPException) as error:
        logger.warning("--notify %s: %s", _shown(target), error)


def _request(address: str, content: bytes) -> urllib.request.Request:
    """Return the POST request of a notice; NAME:PASSWORD@ of its address goes into a header, as it must."""
    parts = urlsplit(address)
    who, _, host = parts.netloc.rpartition("@")
    headers = {"Content-Type": "application/json"}
    if who:
        headers["Authorization"] = f"Basic {base64.b64encode(unquote(who).encode()).decode()}"
    return urllib.request.Request(parts._replace(netloc=host).geturl(), content, headers)


def _shown(target: str) -> str:
    """Name a target by its beginning: the path of an address, or an argument of a command, may be a secret."""
    if target.startswith(("http://", "https://")):
        scheme, _, rest = without_secrets(target).partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"
    return target.split(maxsplit=1)[0] if target.strip() else repr(target)
