"""What the appendices say of code, chapters and tests exists."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import mlore_edu as me
from mlore_edu.published import ledger

ROOT = Path(__file__).parents[1]
APPENDIX = ROOT / "book" / "appendix"
NOTATION = (APPENDIX / "notation.md").read_text()
NAMES = sorted(set(re.findall(r"\{py:\w+\}`([^`<]+) <([\w.]+)>`", NOTATION)))
CHAPTERS = {path.name[:2]: path for path in sorted(ROOT.glob("book/part*/[0-9][0-9]_*.py"))}


# --- notation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    """One object of every class that the small models are made of, by the class's name."""
    models = [
        me.build_model(f"{name}_vit_nano", me.DOLLHOUSE, (64, 64)) for name in ("moe", "mlore", "taskexpert", "tif")
    ]
    models += [me.build_model("baseline_vit_small", me.DOLLHOUSE, (64, 64)), me.fuse(models[1].eval())]
    return {type(part).__name__: part for model in models for part in model.modules()}


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("shown", "path"), NAMES, ids=[shown for shown, _ in NAMES])
def test_a_name_of_the_notation_is_there(shown, path, parts):
    thing = find(path)
    name, part, argument = re.fullmatch(r"(\w+)(?:\.(\w+)|\((\w+)=\))?", shown).groups()
    assert name == thing.__name__
    if argument:
        assert argument in inspect.signature(thing).parameters
    if part:
        fields = getattr(thing, "_fields", ()) or getattr(thing, "__dataclass_fields__", ())
        there = part in fields or hasattr(thing, part) or hasattr(parts.get(name), part)
        assert there, f"{name} has no {part}"


def test_every_equation_of_the_notation_is_in_the_chapter_named_beside_it():
    rows = re.findall(r"\[(\d+)\]\(\.\./(\S+)\.ipynb\)(?:, \{eq\}`(eq-\S+)`)? \|$", NOTATION, re.MULTILINE)
    assert len(rows) == sum("{py:" in line for line in NOTATION.splitlines())
    for number, path, label in rows:
        chapter = ROOT / "book" / f"{path}.py"
        assert chapter == CHAPTERS[number.zfill(2)]
        assert f":label: {label}\n" in chapter.read_text() if label else True


# --- the ledger ------------------------------------------------------------------------------------------------------


def there(proof):
    """Whether a proof of the ledger can be looked up."""
    if proof in ("reading", "facts page"):
        return True
    if chapter := re.fullmatch(r"chapter (\d+)", proof):
        return chapter[1].zfill(2) in CHAPTERS
    module, test = re.fullmatch(r"(test_\w+)::(test_\w+)", proof).groups()
    return re.search(rf"^def {test}\(", (ROOT / "tests" / f"{module}.py").read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", ledger(), ids=lambda row: f"{row.paper}, {row.place}")
def test_a_row_of_the_ledger_has_a_proof_that_is_there_and_chapters_that_exist(row):
    assert row.paper in ("MLoRE", "TaskExpert", "TIF", "all three")
    assert row.kind in ("slip", "contradiction", "claim", "silence", "released code")
    assert all((row.place, row.printed, row.follows, row.here))
    assert all(there(proof) for proof in row.proof.split("; "))
    chapters = re.search(r"[Cc]hapters? ([\d, andto]+)", row.here)
    assert all(number.zfill(2) in CHAPTERS for number in re.findall(r"\d+", chapters[1] if chapters else ""))


def test_no_finding_stands_twice_and_what_rests_on_hearsay_says_so():
    rows = ledger()
    assert len({(row.paper, row.place, row.printed) for row in rows}) == len(rows)
    assert all("facts page" in row.proof for row in rows if row.kind == "released code")
    assert not [row for row in rows if row.kind == "slip" and row.proof == "facts page"]


def test_routers_that_draw_lots_agree_on_an_expert_in_8_and_13_percent():
    """Fig. 4b's null model: 9 of 15 experts at random for each of five tasks (PASCAL-Context) or four (NYUD-v2)."""
    generator = torch.Generator().manual_seed(0)
    for tasks, expected in ((5, 0.0778), (4, 0.1296)):
        chosen = torch.rand(20_000, tasks, 15, generator=generator).argsort(-1).argsort(-1) < 9  # (draws, T, N)
        assert chosen.all(dim=1).float().mean().item() == pytest.approx(expected, abs=0.004)
        assert expected == pytest.approx(0.6**tasks, abs=1e-4)


# --- the glossary ----------------------------------------------------------------------------------------------------


def test_the_glossary_is_in_alphabetical_order_and_every_entry_names_its_chapter():
    text = (APPENDIX / "glossary.md").read_text()
    entries = re.findall(r"^(\S.*)\n  (\S.*)$", text.partition("{glossary}")[2], re.MULTILINE)
    names = [name.lower().replace("δ", "delta ") for name, _ in entries]
    assert names == sorted(names)
    assert len(names) > 60
    for _, meaning in entries:
        number, link = re.search(r"\[Chapter (\d+)\]\(\.\./(\S+)\.ipynb\)\.$", meaning).groups()
        assert ROOT / "book" / f"{link}.py" == CHAPTERS[number.zfill(2)]


# --- the reference ---------------------------------------------------------------------------------------------------


def test_every_public_name_of_the_library_has_a_page():
    pages = "\n".join(path.read_text() for path in (APPENDIX / "library").glob("*.md"))
    documented = set(re.findall(r"auto\w+:: ([\w.]+)", pages))
    for name in set(me.__all__) - {"__version__", "published"}:
        home = getattr(me, name).__module__ if hasattr(getattr(me, name), "__module__") else "mlore_edu.tasks"
        assert home in documented, name
    for name in documented:
        if not (ROOT / f"{name.replace('.', '/')}.py").exists():
            find(name.partition("(")[0])


def test_every_page_of_the_reference_opens_with_two_sentences():
    for path in (APPENDIX / "library").glob("*.md"):
        opening = path.read_text().split("\n\n")[1]
        assert len(re.findall(r"[.:;]( |$)", opening)) >= 2, path.name
        assert f"appendix/library/{path.stem}" in (ROOT / "book" / "_toc.yml").read_text()
