from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from mailjob.lifecycle import Status
from mailjob.meters import REGISTRY
from service import problems

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_the_generated_parts_are_up_to_date(name: str) -> None:
    render = runpy.run_path(str(ROOT / "docs/generate.py"))["render"]
    assert render(ROOT / name) == (ROOT / name).read_text(), "run ./run docs"


@pytest.mark.parametrize("status", Status)
def test_every_status_is_explained(status: Status) -> None:
    assert f"`{status}`" in README


def test_the_readme_has_all_its_parts() -> None:
    parts = ["Try it", "How it works", "Run it", "HTTP", "Statuses", "Settings", "Templates", "More"]
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == parts


def test_every_problem_type_is_in_the_readme() -> None:
    sources = [path.read_text() for path in (ROOT / "service").glob("*.py")]
    kinds = set(re.findall(r'HTTPStatus\.[A-Z_]+,\s*"([a-z-]+)"', "".join(sources)))
    assert len(kinds) >= 10
    assert not {kind for kind in kinds if f"`{kind}`" not in README}
    assert problems.TYPE_PREFIX in README


@pytest.mark.parametrize("document", sorted(ROOT.glob("**/*.md")), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    if {".venv", ".bench"} & set(document.parts):
        return
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_test_that_a_guarantee_names_exists() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    sources = "".join(path.read_text() for path in ROOT.glob("tests/**/*.py"))
    for file in re.findall(r"tests/[a-z_/]+\.py", text):
        assert (ROOT / file).exists(), file
    names = re.findall(r"`(test_[a-z0-9_]+)`", text)
    assert len(names) > 10
    assert not [name for name in names if f"def {name}(" not in sources]


def test_every_metric_has_a_name_of_its_own() -> None:
    names = [family.name for family in REGISTRY.collect()]
    assert len(names) == len(set(names))
