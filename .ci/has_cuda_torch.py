"""Exits with 0 if the CUDA build of torch of requirements/cuda.txt need not be downloaded: its wheel is on disk.

On disk means installed in .venv-cuda, in a folder that pip is told of, or in pip's cache, whose layout this reads.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def is_here() -> bool:
    if (ROOT / ".venv-cuda/torch").exists():
        return True
    wanted = next(line for line in (ROOT / "requirements/cuda.txt").read_text().split() if line.startswith("torch=="))
    look = ["install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", wanted]
    done = subprocess.run([*PIP, *look], capture_output=True, text=True, timeout=60)
    if done.returncode:
        return False
    url = json.loads(done.stdout)["install"][0]["download_info"]["url"]
    if url.startswith("file:"):
        return True
    cache = subprocess.run([*PIP, "cache", "dir"], capture_output=True, text=True).stdout.strip()
    key = hashlib.sha224(url.encode()).hexdigest()
    return bool(cache) and Path(cache, "http-v2", *key[:5], key).exists()


if __name__ == "__main__":
    sys.exit(not is_here())
