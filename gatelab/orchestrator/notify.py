"""Notices: what a study tells a command or a web address, of failures, of a diverged baseline and of its end."""

import json
import logging
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

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
            request = urllib.request.Request(target, content, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=SECONDS):
                return
        names = {f"GATELAB_{name.upper()}": value for name, value in asdict(event).items()}
        subprocess.run(
            target, shell=True, input=content, env=os.environ | names, timeout=SECONDS, check=True, capture_output=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logger.warning("--notify %s: %s", target, error)
