"""The set-up: what it says before it begins, and that nothing is done twice. Its real steps run in a fresh clone."""

import ast
import hashlib
import importlib
import io
import re
import shutil
import sys
import tarfile
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
OTHER_NAMES = {"dotenv": "python-dotenv", "hydra": "hydra-core", "llama_cpp": "llama-cpp-python", "yaml": "pyyaml"}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "deploy"))
    return importlib.import_module("install")


@pytest.fixture
def place(install: Any, tmp_path: Path) -> Any:
    """A fresh clone without an environment."""
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    place = install.Place(tmp_path)
    place.cache.mkdir(parents=True)
    place.log.touch()
    return place


@pytest.fixture
def pip(install: Any, place: Any) -> Any:
    """The pip of the Python that runs the tests, so that its words are real."""
    place.python = Path(sys.executable)
    with (place.cache / "lock").open("w") as lock:
        yield install.Pip(place, lock)


def finish(install: Any, place: Any, extra: str) -> None:
    """Leave what a finished set-up leaves."""
    place.python.parent.mkdir(parents=True, exist_ok=True)
    place.python.touch()
    place.converter.mkdir(parents=True, exist_ok=True)
    (place.converter / "convert_hf_to_gguf.py").touch()
    install.write_stamp(place, extra)


@pytest.mark.parametrize("name", ["install.py", "machine.py", "step.py"])
def test_a_python_that_is_too_old_can_still_read_the_set_up(name: str) -> None:
    source = (ROOT / "deploy" / name).read_text()
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__ import annotations" not in source  # 3.7


def test_a_python_that_is_too_old_is_told_which_is_needed(
    install: Any, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.machine, "OLDEST_PYTHON", (99, 1))
    (sentence,) = install.machine.python_problems(place.venv)
    assert "99.1 or newer is needed" in sentence and "make run PYTHON=" in sentence


def test_a_missing_compiler_says_how_to_get_one(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.machine, "runs", lambda *command: command[0] == "gcc")
    (sentence,) = install.machine.compiler_problems()
    assert "no C++ compiler runs here" in sentence and "build-essential" in sentence


def test_a_compiler_named_by_the_environment_counts(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "my-cc -O2")
    monkeypatch.setenv("CXX", "my-c++")
    monkeypatch.setattr(install.machine, "runs", lambda *command: command[0] in ("my-cc", "my-c++"))
    assert not list(install.machine.compiler_problems())


def test_a_full_disk_says_what_is_free_and_what_is_needed(
    install: Any, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(1.5 * 1024**3)))
    sentences = list(install.machine.disk_problems(place.root, need=8))
    assert sentences[0].startswith(f"{place.root} has 1.5 GiB free and 8 GiB are needed")


def test_everything_that_is_wrong_is_said_at_once(
    install: Any, place: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install.machine, "runs", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert install.main([], place) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("no `venv` module", "no C and no C++ compiler", "0.0 GiB free"))
    assert not place.venv.exists()


def test_an_environment_that_is_a_link_is_never_emptied(
    install: Any, place: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (others := tmp_path / "others").mkdir()
    (others / "work").touch()
    place.venv.symlink_to(others)
    assert install.main([], place) == 2
    assert f".venv is a link to {others}" in capsys.readouterr().err
    assert (others / "work").exists()


def test_windows_is_sent_to_wsl(
    install: Any, place: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert install.main([], place) == 2
    assert "WSL" in capsys.readouterr().err


def test_without_a_network_pip_itself_is_asked_and_the_sentence_says_where_its_words_are(
    install: Any, pip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(pip.place.cache))
    (sentence,) = install.index_problems(pip)
    assert "check the network" in sentence and str(pip.place.log) in sentence
    assert "No matching distribution" in pip.place.log.read_text()


def test_a_pip_that_fails_shows_its_last_lines_and_the_log(install: Any, pip: Any) -> None:
    with pytest.raises(install.Failed, match="unknown command") as failure:
        pip.run("nonsense")
    assert str(pip.place.log) in str(failure.value)


def test_a_wrong_hash_names_the_file_and_both_digests_and_deletes_it(install: Any, pip: Any) -> None:
    sdist = pip.place.sdist
    sdist.write_bytes(b"cut short")
    with pytest.raises(install.Failed) as failure:
        install.fetch_source(pip)
    said = str(failure.value)
    assert all(part in said for part in (str(sdist), hashlib.sha256(b"cut short").hexdigest(), install.SDIST_SHA256))
    assert "run the same command again" in said and not sdist.exists()


def test_a_second_run_does_nothing(install: Any, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(install, place, "dev")
    monkeypatch.setattr(install, "set_up", lambda *_: pytest.fail("something was installed again"))
    assert install.main(["--dev"], place) == 0
    for less in ([], ["--server"]):
        assert install.main(less, place) == 0  # what the tests need holds what a run and the servers need


@pytest.mark.parametrize("change", ["server", "pyproject.toml", "constraints.txt", "converter", "python", "stamp"])
def test_what_changed_or_is_missing_is_seen(install: Any, place: Any, change: str) -> None:
    finish(install, place, "")
    if change.endswith((".toml", ".txt")):
        (place.root / change).write_text("# edited")
    elif change == "converter":
        (place.converter / "convert_hf_to_gguf.py").unlink()
    elif change == "python":
        place.python.unlink()
    elif change == "stamp":
        place.stamp.write_text("{")
    assert not install.is_current(place, "server" if change == "server" else "")


def test_a_package_that_was_cut_short_is_forgotten(install: Any, place: Any) -> None:
    packages = place.venv / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.dist-info", "half-1.dist-info"):
        (packages / name).mkdir(parents=True)
    (packages / "whole-1.dist-info" / "INSTALLER").write_text("pip")
    install.forget_half_installed(place)
    assert [path.name for path in place.packages()] == ["whole-1.dist-info"]


def test_the_converter_is_unpacked_and_nothing_else(install: Any, place: Any) -> None:
    llama = f"{install.LLAMA}/vendor/llama.cpp/"
    wanted = [llama + "convert_hf_to_gguf.py", llama + "conversion/base.py", llama + "gguf-py/gguf/vocab.py"]
    with tarfile.open(place.sdist, "w:gz") as archive:
        for name in [*wanted, llama + "src/llama.cpp", llama + "gguf-py/../../../outside.py", "conversion/base.py"]:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    install.unpack_converter(place)
    found = {path.relative_to(place.converter).as_posix() for path in place.converter.rglob("*") if path.is_file()}
    assert found == {name.removeprefix(llama) for name in wanted}


def declared(*extras: str) -> set[str]:
    """Names of the libraries that pyproject.toml asks for, as PyPI spells them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {re.split(r"[<>=\[]", line)[0].lower().replace("_", "-") for line in wanted} - {"posttrain"}


@pytest.mark.parametrize(
    ("rooms", "extras"),
    [(("flows", "tasks"), ("gpu", "distributed")), (("deploy",), ("server",)), (("tests",), ("dev", "server"))],
)
def test_every_library_that_is_imported_is_declared(rooms: tuple[str, ...], extras: tuple[str, ...]) -> None:
    trees = [ast.parse(path.read_text()) for room in rooms for path in (ROOT / room).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    names = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names)
    names -= {"flows", "tasks", "tests", "conf", "data", "deploy", "machine", "step"}
    assert {OTHER_NAMES.get(name, name).replace("_", "-") for name in names} <= declared(*extras)


def test_the_tested_set_pins_every_library_and_names_no_place_to_get_it_from() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert declared("dev") <= {line.split("==")[0].lower().replace("_", "-") for line in lines}
