"""Make the project's environment: `python3 deploy/install.py [--dev]` (`make` calls it; silent when nothing changed).

Afterwards `.venv` holds the libraries that pyproject.toml asks for in the versions that constraints.txt pins (`--dev`:
with all that tests and linters need; `--server`: with what `make up` needs), llama-cpp-python built from its source
distribution, and, in `.venv/share/llama.cpp`, the converter from that same file. Downloads, the built wheel and the log
stay in `data/cache`; for another build of llama.cpp (CMAKE_ARGS) remove `.venv` and that wheel. pip's configuration
holds: index, proxy ...

What this machine lacks is said first, all of it, with exit code 2; a step that fails ends with exit code 1. A run that
was stopped goes on where it was. Only the standard library is used, and Python 3.6 must still load this file.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, Dict, Iterator, List, Optional

import machine
from step import Step

LLAMA = "llama_cpp_python-0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
CONVERTER = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/", "LICENSE")
PINNED = ("-c", "constraints.txt")
EXTRAS = ("", "server", "dev")  # each holds the one before it
PROBE = "mdurl"  # ten kilobytes, and one of the pinned packages


class Failed(Exception):
    """A step that could not be done; the text says why and what to do."""


class Place:
    """Where everything lies, seen from the repository's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.stamp = self.venv / ".installed"
        self.converter = self.venv / "share" / "llama.cpp"
        self.cache = root / "data" / "cache"
        self.log = self.cache / "install.log"
        self.sdist = self.cache / (LLAMA + ".tar.gz")

    def wheel(self) -> Optional[Path]:
        """The llama-cpp-python wheel that was built here, if there is one."""
        return next(self.cache.glob(LLAMA + "-*.whl"), None)

    def packages(self, name: str = "*") -> List[Path]:
        return list(self.venv.glob(f"lib/python3*/site-packages/{name}.dist-info"))


def main(argv: Optional[List[str]] = None, place: Optional[Place] = None) -> int:
    parser = argparse.ArgumentParser(description="Make the project's environment in .venv.")
    more = parser.add_mutually_exclusive_group()
    for name, words in (("dev", "with all that tests and linters need"), ("server", "with what `make up` needs")):
        more.add_argument("--" + name, action="store_const", const=name, dest="extra", help=words)
    extra = parser.parse_args(argv).extra or ""
    place = place or Place(Path(__file__).resolve().parent.parent)
    if sys.platform == "win32":
        return complain(["Windows itself is not supported: open a WSL terminal (`wsl --install`) and run this there."])
    try:
        return 0 if is_current(place, extra) else set_up(place, extra)
    except (Failed, OSError) as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130


def set_up(place: Place, extra: str) -> int:
    place.cache.mkdir(parents=True, exist_ok=True)
    pip = Pip(place, wait_for_others(place))
    if is_current(place, extra):
        return 0
    place.log.write_bytes(b"")
    forget_half_installed(place)
    works = machine.venv_works(place.venv)  # if not it is made anew, and nothing in it counts
    libraries = not (works and place.stamp.exists() and pip.needs_no_index(extra))
    build = libraries and not (place.wheel() or (works and place.packages(LLAMA)))
    converter = not works or converter_files(place) != stamped(place).get("converter")
    if libraries or (converter and not place.sdist.exists()):
        found = problems(pip, build)
        if found:
            return complain(found)
    if libraries:
        with Step(place.log, "pip"):
            pip.run("install", *PINNED, "pip", "setuptools")
    if build or converter:
        fetch_source(pip)
    if build:
        build_wheel(pip)
    if libraries:
        with Step(place.log, "libraries (torch is the large one)"):
            pip.install(extra)
    if converter:
        unpack_converter(place)
    write_stamp(place, extra)
    return 0


def problems(pip: "Pip", build: bool) -> List[str]:
    """All that would stop the set-up. Makes `.venv` on the way: its pip is asked whether it reaches the index."""
    place = pip.place
    found = list(machine.problems(place.venv, build, full=not place.packages("torch-*")))
    if not place.venv.is_symlink() and not list(machine.python_problems(place.venv)):
        with Step(place.log, "environment"):
            found += list(venv_problems(place)) or list(index_problems(pip))
    return found


def complain(found: List[str]) -> int:
    print("The set-up cannot begin:\n  * " + "\n  * ".join(found), file=sys.stderr)
    return 2


# --- what is already there --------------------------------------------------------------------------------------------


def fingerprint(place: Place) -> str:
    """Changes with the files that define the environment, with its folder, and with the Python it stands on."""
    digest = hashlib.sha256(f"{place.root}\n{os.path.realpath(str(place.python))}\n".encode())
    own = Path(__file__)
    for path in (place.root / "pyproject.toml", place.root / "constraints.txt", own, own.with_name("machine.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamped(place: Place) -> Dict[str, Any]:
    """What the last finished set-up wrote down (fingerprint, extra, converter), or nothing."""
    try:
        return dict(json.loads(place.stamp.read_text()))
    except (OSError, ValueError):
        return {}


def is_current(place: Place, extra: str) -> bool:
    stamp = stamped(place)
    if "extra" not in stamp or not place.python.exists() or EXTRAS.index(stamp["extra"]) < EXTRAS.index(extra):
        return False
    return bool(stamp["fingerprint"] == fingerprint(place) and stamp["converter"] == converter_files(place))


def write_stamp(place: Place, extra: str) -> None:
    content = {"fingerprint": fingerprint(place), "extra": extra, "converter": converter_files(place)}
    unfinished = place.stamp.with_name(".installed.new")
    unfinished.write_text(json.dumps(content))
    unfinished.replace(place.stamp)


def converter_files(place: Place) -> int:
    return sum(1 for _ in place.converter.rglob("*.py"))


def forget_half_installed(place: Place) -> None:
    """pip writes INSTALLER after a package's files: without it the package was cut short and has to come again."""
    for package in place.packages():
        if not (package / "INSTALLER").exists():
            shutil.rmtree(str(package))


def wait_for_others(place: Place) -> IO[str]:
    """Hold the set-up's lock. pip inherits it, so that a pip which outlived a killed set-up is waited for as well."""
    import fcntl  # not on Windows

    lock = (place.cache / "install.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("Another set-up is at work here; waiting for it.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


# --- the steps --------------------------------------------------------------------------------------------------------


class Pip:
    """The environment's own pip; its words go to the log."""

    def __init__(self, place: Place, lock: IO[str]) -> None:
        self.place, self.lock = place, lock

    def run(self, command: str, *arguments: str) -> None:
        line = [str(self.place.python), "-m", "pip", command, *arguments]
        environment = dict(os.environ, PIP_USER="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
        environment.pop("PYTHONPATH", None)
        where, inherited = str(self.place.root), [self.lock.fileno()]
        with self.place.log.open("ab", buffering=0) as log:
            log.write("\n$ {}\n".format(" ".join(line)).encode())
            code = subprocess.call(line, stdout=log, stderr=log, cwd=where, env=environment, pass_fds=inherited)
        if code:
            raise Failed(
                f"pip {command} failed. The last lines of {self.place.log}:\n\n{last_lines(self.place.log, 15)}\n\n"
                "When the cause is gone, the same command goes on from here."
            )

    def install(self, extra: str, *options: str) -> None:
        wheel = self.place.wheel()
        project = f".[{extra}]" if extra else "."
        self.run("install", *PINNED, *options, *([str(wheel)] if wheel else []), "--editable", project)

    def needs_no_index(self, extra: str) -> bool:
        """Install with what is already there: enough after most edits of pyproject.toml, and it works offline."""
        try:
            self.install(extra, "--no-index", "--no-build-isolation")
        except Failed:
            return False
        return True


def venv_problems(place: Place) -> Iterator[str]:
    """Make `.venv` where none works."""
    if machine.venv_works(place.venv):
        return
    with place.log.open("ab") as log:
        code = subprocess.call([sys.executable, "-m", "venv", "--clear", str(place.venv)], stdout=log, stderr=log)
    if code:
        said = last_lines(place.log, 1)
        yield f"{sys.executable} cannot make {place.venv} ({said}): name another, as in `make run PYTHON=python3.12`."


def index_problems(pip: Pip) -> Iterator[str]:
    """Let pip itself fetch something tiny: only pip knows which index, mirror or proxy this machine uses."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            pip.run("download", "--no-deps", "--no-cache-dir", "--retries=1", "--timeout=20", "--dest", scratch, PROBE)
        except Failed:
            yield (
                "pip cannot reach its package index: check the network, the proxy and `pip config list`, "
                f"then run this again (pip's own words are in {pip.place.log})."
            )


def fetch_source(pip: Pip) -> None:
    sdist = pip.place.sdist
    if not sdist.exists():
        with Step(pip.place.log, "llama-cpp-python's source (77 MB)"):
            scratch = empty(pip.place.cache / "unfinished")
            name, version = LLAMA.replace("_", "-").rsplit("-", 1)
            pip.run("download", "--no-deps", "--no-binary", name, "--dest", str(scratch), name + "==" + version)
            (scratch / sdist.name).replace(sdist)
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SDIST_SHA256:
        sdist.unlink()
        raise Failed(
            f"{sdist} is not the file this project was tested with:\n  its SHA-256 is {digest}\n  and should be  "
            f"{SDIST_SHA256}\nIt has been deleted: run the same command again. If that does not help, your index "
            "serves another file."
        )


def build_wheel(pip: Pip) -> None:
    with Step(pip.place.log, "building llama.cpp (2 to 7 minutes, once)"):
        scratch = empty(pip.place.cache / "unfinished")
        pip.run("wheel", "--verbose", "--no-deps", "--wheel-dir", str(scratch), str(pip.place.sdist))
        for wheel in scratch.glob("*.whl"):
            wheel.replace(pip.place.cache / wheel.name)


def unpack_converter(place: Place) -> None:
    folder = LLAMA + "/vendor/llama.cpp/"
    with Step(place.log, "llama.cpp's converter"), tarfile.open(str(place.sdist)) as archive:
        fresh = empty(place.converter.with_name("llama.cpp.new"))
        for member in archive:
            name = member.name[len(folder) :]
            if member.isfile() and member.name.startswith(folder) and name.startswith(CONVERTER) and ".." not in name:
                target = fresh / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())  # type: ignore[union-attr]
        shutil.rmtree(str(place.converter), ignore_errors=True)
        fresh.replace(place.converter)


def empty(folder: Path) -> Path:
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def last_lines(log: Path, count: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return "\n".join(lines[-count:])


if __name__ == "__main__":
    sys.exit(main())
