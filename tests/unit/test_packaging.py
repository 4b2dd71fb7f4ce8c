"""What setup.cfg installs is what the tree holds."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def packages_in(folder: str, installed_as: str) -> set[str]:
    found = (init.parent.relative_to(ROOT / folder).parts for init in (ROOT / folder).rglob("__init__.py"))
    return {".".join((installed_as, *parts)) for parts in found}


def requirements(lines: str, separator: str) -> set[tuple[str, str]]:
    """Names and versions of the lines that give one."""
    parts = (line.split(";")[0].partition(separator) for line in lines.splitlines() if not line.startswith("#"))
    return {(name.strip(), version.strip()) for name, found, version in parts if found}


def test_oldest_versions_that_are_tested_are_the_lower_bounds() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    bounds = "\n".join([config["options"]["install_requires"], extras["redis"], extras["gevent"]])

    tested = (ROOT / ".ci" / "oldest.txt").read_text()

    assert requirements(tested, "==") == requirements(bounds, ">=")


def test_every_package_is_listed_and_cli_is_never_a_top_level_package() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")

    listed = set(config["options"]["packages"].split())

    assert listed == packages_in("entitycelery", "entitycelery") | packages_in("cli", "entitycelery.cli")
