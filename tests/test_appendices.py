"""What the appendices say of code, chapters and tests exists."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch

import mlore_edu as me

ROOT = Path(__file__).parents[1]
APPENDIX = ROOT / "book" / "appendix"
NOTATION = (APPENDIX / "notation.md").read_text()
NAMES = sorted(set(re.findall(r"\{py:\w+\}`([^`<]+) <([\w.]+)>`", NOTATION)))
LABELS = {
    label
    for chapter in ROOT.glob("book/part*/*.py")
    for label in re.findall(r":label: (eq-\S+)", chapter.read_text())
}


@pytest.fixture(scope="module")
def parts():
    """One object of every class that the small models are made of, by the class's name."""
    models = [me.build_model(f"{name}_vit_nano", me.DOLLHOUSE, (64, 64)) for name in ("moe", "mlore", "taskexpert", "tif")]
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
