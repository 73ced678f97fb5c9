"""What is known against the packages that are pinned, and secrets in the project's own files.  ``make audit`` runs it.

Exit status: 1 where something was found.  Where the databases of vulnerabilities cannot be reached, that check is left
out, and a line says so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

__all__: list[str] = []

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
#: What looks like a secret and is none, and why.
NO_SECRETS = (
    ("secret", "the word that tests give in place of a password or a key"),
    ("word", "the password of the user `user` in a test of addresses that are refused"),
    ("0af7651916cd43dd8448eb211c80319c", "the trace in the examples of the W3C's Trace Context"),
    ("b7ad6b7169203331", "the span there"),
)
#: Lines in which nothing is a secret: a SHA-256 is a file's checksum, or what a token is known by where it is taken.
CHECKSUM_LINES = r'sha256 = "[0-9a-f]{64}"'
LOCKS = ("requirements.lock", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("locks/*.lock")))


def say(line: str) -> None:
    sys.stdout.write(f"audit: {line}\n")


def vulnerabilities(lock: str) -> tuple[list[str], int]:
    """What is known against the pins of one lock, a line each; and how many of them could be looked up."""
    command = [str(BIN / "pip-audit"), "--disable-pip", "--require-hashes", "--format", "json", "--requirement", lock]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return [], 0
    known = [package for package in packages if "skip_reason" not in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, mended in {' or '.join(flaw['fix_versions']) or 'none'}"
        for package in known
        for flaw in package["vulns"]
    ]
    return found, len(known)


def secrets() -> list[str]:
    """Places in tracked files that look like a password, a key or a token."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    # Locks are made of hashes, which look like nothing but secrets.
    files = [name for name in tracked if name and not name.endswith((".lock", "package-lock.json"))]
    known = [part for secret, _ in NO_SECRETS for part in ("--exclude-secrets", f"^{secret}$")]
    command = [str(BIN / "detect-secrets"), "scan", "--exclude-lines", CHECKSUM_LINES, *known, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=900)
    results = json.loads(done.stdout)["results"]
    return [f"{name}:{one['line_number']}: {one['type']}" for name, found in results.items() for one in found]


def main() -> int:
    bad = False
    for lock in LOCKS:
        found, looked_up = vulnerabilities(lock)
        if not looked_up:
            say(f"{lock}: left out, as no database of vulnerabilities could be reached")
            continue
        say(f"{lock}: {looked_up} packages looked up, {len(found)} known vulnerabilities")
        for line in found:
            say(f"  {line}")
        bad = bad or bool(found)
    found = secrets()
    say(f"secrets: {len(found)} found")
    for line in found:
        say(f"  {line}: take it out of the history, and change it where it is used")
    return 1 if bad or found else 0


if __name__ == "__main__":
    sys.exit(main())
