from __future__ import annotations

from pathlib import Path

import pytest

from flows import preview
from tests.flows import roads

HI = '{"messages": [{"role": "user", "content": "Hi [red]you[/red]"}, {"role": "assistant", "content": "Ok <b>."}]}\n'


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> list[str]:
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(HI.replace("Hi", f"Hi {n}") for n in range(30)))
    return roads.overrides(tiny_model, tmp_path / "root", f"chats.path={data}")


def test_rows_are_shown_with_what_bears_loss_and_the_proof(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "rows.html"
    assert preview.main([*given, "--rows", "2", "--html", str(page)]) == 0
    said = capsys.readouterr().out
    assert "[red]you[/red]<|im_end|>\n<|im_start|>assistant\n⟦Ok <b>.<|im_end|>⟧" in said
    assert "Row 2: " in said and "Row 3: " not in said
    assert "Mask: completion." in said
    assert "Stop token <|im_end|>: the last trained token of 24 of 24 whole answers." in said
    assert '<span class="trained">Ok &lt;b&gt;.</span><span class="trained control">' in page.read_text()


def test_rows_that_were_left_out_are_told(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text(data.read_text() + HI.replace("Ok <b>.", " "))
    assert preview.main([*given, "--rows", "1"]) == 0
    assert "Left out: 1 of 31 rows of chats, chats.jsonl:31 (empty answer); more about it: " in capsys.readouterr().out


def test_what_it_makes_a_run_finds_and_it_makes_nothing_twice(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview.main(given) == 0
    made = sorted((tmp_path / "root" / "store" / "manifests").glob("*/*.json"))
    assert {place.parent.name for place in made} == {"download", "preprocess", "encode"}
    capsys.readouterr()
    assert preview.main([*given, "--rows", "1"]) == 0
    assert sorted((tmp_path / "root" / "store" / "manifests").glob("*/*.json")) == made
    told = capsys.readouterr().err
    assert told.count("cached") == 3 and "made" not in told


def test_the_notes_of_encode_hold_the_page_and_the_proof(given: list[str], tmp_path: Path) -> None:
    assert preview.main([*given, "encode.mask=assistant"]) == 0
    (notes,) = (tmp_path / "root" / "store" / "notes" / "encode").iterdir()
    assert {path.name for path in notes.iterdir()} == {"preview.html", "report.json", "report.md"}
    assert (notes / "preview.html").read_text().count("<section>") == 20
    assert "* Mask: assistant." in (notes / "report.md").read_text()


def test_a_wrong_config_is_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert preview.main([f"runtime.root={tmp_path}", "encode.mask=assistent", "encode.packin=true"]) == 2
    assert "assistant" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_failed_stage_is_told_in_its_own_words(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert preview.main([*given, "encode.cutoff=8"]) == 1
    assert "raise encode.cutoff" in capsys.readouterr().err


@pytest.mark.parametrize("rows", ["0", "-1", "some"])
def test_rows_are_a_number(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        preview.main([f"--rows={rows}"])
    assert left.value.code == 2
    assert "give 1 or more" in capsys.readouterr().err


def test_help_says_what_it_shows_and_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        preview.main(["--help"])
    said = capsys.readouterr().out
    assert "Trains nothing." in said
    assert "--html FILE" in said
