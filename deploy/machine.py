"""What the set-up may find wrong with this machine, each as one sentence that says what to do.

Nothing here changes anything or asks the network. Standard library only, and Python 3.6 must still load this file: it
is what tells a Python that is too old that it is too old.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Iterator

OLDEST_PYTHON = (3, 11)
GIB = 1024.0**3
LARGE = 10 if sys.platform == "linux" else 5  # GiB; on Linux most indexes serve torch with CUDA, and pip keeps a copy


def problems(venv: Path, build: bool, full: bool) -> Iterator[str]:
    """All of it at once; `build`: llama.cpp has to be compiled; `full`: the large libraries are still to come."""
    yield from python_problems(venv)
    if venv.is_symlink():  # making an environment empties what is there
        yield f"{venv} is a link to {os.path.realpath(str(venv))}, where others may work: remove the link."
    if build:
        yield from compiler_problems()
    yield from disk_problems(venv.parent, need=LARGE if full else 1)


def python_problems(venv: Path) -> Iterator[str]:
    """The Python that runs this file matters only while there is no environment."""
    if venv_works(venv):
        return
    if sys.version_info < OLDEST_PYTHON:
        found, needed = (".".join(str(part) for part in version[:2]) for version in (sys.version_info, OLDEST_PYTHON))
        yield (
            f"This is Python {found}, and {needed} or newer is needed: install one and name it, "
            "as in `make run PYTHON=python3.12`."
        )
    elif not runs(sys.executable, "-c", "import venv, ensurepip"):
        yield (
            "This Python has no `venv` module: install it (Debian, Ubuntu: sudo apt install python3-venv) "
            "or name another Python, as in `make run PYTHON=python3.12`."
        )


def compiler_problems() -> Iterator[str]:
    """A compiler counts when it runs: macOS has a `cc` that only asks for one. cmake looks at CC and CXX first."""
    missing = [
        language
        for language, variable, usual in (("C", "CC", "cc gcc clang"), ("C++", "CXX", "c++ g++ clang++"))
        if not any(runs(name, "--version") for name in [*os.environ.get(variable, "").split()[:1], *usual.split()])
    ]
    if missing:
        yield (
            f"llama.cpp is built from source, and no {' and no '.join(missing)} compiler runs here: install one "
            "(Debian, Ubuntu: sudo apt install build-essential; Fedora: sudo dnf install gcc gcc-c++; "
            "macOS: xcode-select --install)."
        )


def disk_problems(root: Path, need: int) -> Iterator[str]:
    """`need` GiB beside the project, and 2 GiB where pip unpacks and builds if that is another disk."""
    needs = [(root, need, "")]
    temporary = Path(tempfile.gettempdir())
    if temporary.stat().st_dev != root.stat().st_dev:
        needs.append((temporary, 2, ", or set TMPDIR to a folder on a larger disk"))
    for folder, enough, otherwise in needs:
        free = shutil.disk_usage(str(folder)).free / GIB
        if free < enough:
            yield f"{folder} has {free:.1f} GiB free and {enough} GiB are needed: free some{otherwise}."


def venv_works(venv: Path) -> bool:
    """Whether it runs, is young enough, has a pip, and was made where it lies (its scripts hold that path)."""
    try:
        made = re.search("^command = .*", (venv / "pyvenv.cfg").read_text(), re.MULTILINE)
    except OSError:
        return False
    if made and not made.group().endswith(str(venv)):
        return False
    return runs(str(venv / "bin" / "python"), "-c", f"import sys, pip; sys.exit(sys.version_info < {OLDEST_PYTHON})")


def runs(*command: str) -> bool:
    try:
        return subprocess.call(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
    except OSError:
        return False
