"""Which code computed a result."""

import functools
import hashlib
import subprocess
from pathlib import Path

import gatelab


@functools.cache
def code_version() -> dict[str, str]:
    """Return which code this is.

    `code` is the release and a hash of the package's sources; `commit` is git's, with + where the tree differs.
    """
    package = Path(gatelab.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return {"code": f"{gatelab.__version__}+{digest.hexdigest()[:12]}", "commit": _commit(package.parent)}


def _commit(folder: Path) -> str:
    def git(*arguments: str) -> str:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return result.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.resolve():
            return ""
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", "gatelab") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
