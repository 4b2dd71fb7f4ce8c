"""Every link leads somewhere: to a page, to a heading on it, to a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, pages

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_PAGE_IN_CODE = re.compile(r"docs/[\w/\-]+\.md")
PAGES = [*pages(), Path("CHANGELOG.md"), Path("examples/README.md")]


def _prose(page: Path) -> str:
    return _FENCED.sub("", (ROOT / page).read_text())


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_prose(page))
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_link_of_the_page_leads_to_a_file_or_a_heading(page: Path) -> None:
    inside = [target for target in _LINK.findall(_prose(page)) if not target.startswith(("http://", "https://"))]

    dead = []
    for target in inside:
        path, _, anchor = target.partition("#")
        leads_to = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not leads_to.exists() or (anchor and anchor not in _anchors(leads_to.relative_to(ROOT))):
            dead.append(target)

    assert dead == []


def test_every_page_is_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    waiting = [Path("README.md")]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in _LINK.findall(_prose(page)):
            path = target.partition("#")[0]
            if path.endswith(".md") and not target.startswith("http"):
                waiting.append(((ROOT / page).parent / path).resolve().relative_to(ROOT))

    assert set(pages()) - reached == set()


def test_pages_that_the_code_refers_to_exist() -> None:
    sources = [path for folder in ("entitycelery", "cli", "benchmarks") for path in (ROOT / folder).rglob("*.py")]

    named = {name for path in sources for name in _PAGE_IN_CODE.findall(path.read_text())}

    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
