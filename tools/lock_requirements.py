"""Write requirements.lock: every runtime dependency at the version of constraints.txt, with the SHA-256 of its file.

`python tools/lock_requirements.py` (or `make lock`) asks pip what it would install for this interpreter on this system
and writes what pip answers; nothing is installed. The hashes are those of the files pip chose here, so the lock holds
for one kind of system only, which its first lines name.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"


def resolved() -> dict[str, Any]:
    """Pip's report of what it would install for the package and its dependencies."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        words = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        constraints = ["-c", str(ROOT / "constraints.txt"), str(ROOT)]
        subprocess.run([sys.executable, "-m", "pip", *words, *constraints], check=True, stderr=subprocess.DEVNULL)
        answer: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return answer


def lock_lines(report: dict[str, Any]) -> list[str]:
    """A line a dependency, sorted by name; the package itself, which is a folder and has no hash, is left out."""
    lines = []
    for item in report["install"]:
        if "dir_info" in item["download_info"]:
            continue
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={version} --hash=sha256:{digest}")
    return sorted(lines, key=str.lower)


def main() -> None:
    """Resolve, write, say so."""
    report = resolved()
    python = f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    header = [
        f"# For {platform.system()} {platform.machine()}, {python}, by tools/lock_requirements.py (docs/security.md).",
        "# Install: pip install --require-hashes -r requirements.lock && pip install --no-deps .",
    ]
    lines = lock_lines(report)
    LOCK.write_text("\n".join([*header, *lines]) + "\n", encoding="ascii")
    print(f"{LOCK.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
