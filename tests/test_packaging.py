"""pyproject.toml, requirements.lock and environment.yml say the same thing; every public name is there."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import mlore_edu

tomllib = pytest.importorskip("tomllib")  # Python 3.11 and newer

ROOT = Path(__file__).parents[1]


def requirements(*extras):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def pins():
    found = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.match(r"([\w.-]+)==([^ ;]+)", line).groups()
            found.setdefault(name, []).append(Version(version))
    return found


def test_the_lock_pins_every_package_within_its_range():
    locked = pins()
    for requirement in requirements("book", "test", "export", "demo", "video"):
        for version in locked[requirement.name]:
            assert requirement.specifier.contains(version, prereleases=True), requirement


def test_the_lock_names_no_index_and_no_file():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_conda_lists_the_packages_of_pyproject_and_uses_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    options = [line for line in pip if line.startswith("-")]
    assert options == ["--constraint requirements.lock", "--editable ."]
    assert {str(Requirement(line)) for line in pip if not line.startswith("-")} == {
        str(requirement) for requirement in requirements("book", "test")
    }


def test_this_environment_has_the_locked_versions():
    from importlib.metadata import version

    for requirement in requirements("book", "test"):
        assert Version(version(requirement.name)) in pins()[requirement.name], requirement.name


def test_every_public_name_can_be_imported():
    for name in mlore_edu.__all__:
        assert getattr(mlore_edu, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(mlore_edu, "no_such_thing")


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == mlore_edu.__version__ == citation["version"]
