"""The documentation is complete and true: nothing undocumented, nothing documented but gone."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from models.schema import metadata
from worker.admin.cli import app
from worker.config import Settings
from worker.core.search_params import DEFAULT_STRATEGY, Strategy
from worker.errors import RisError
from worker.evaluation import STRATEGIES
from worker.jobs import UNEXPECTED, WORKER_LOST

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks" / "LOG.md",
    *sorted(DOCS.rglob("*.md")),
]

# Written in parts, so that this file does not contain them.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/" + "work/",
    "a package registry's host": "|".join(
        re.escape(host)
        for host in ("pypi" + ".org", "python" + "hosted.org", "download.py" + "torch.org")
    ),
    "a word that is not ours": "moon" + "shot",
}


def sections(page: str) -> dict[str, str]:
    """Text below each second-level heading of a page, by heading."""
    parts = re.split(r"^## +(.+)$", (DOCS / page).read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """Cells of every table row whose first cell is code; stripped of back-quotes at the ends."""
    found = [re.split(r"(?<!\\)\|", line.strip("|")) for line in text.splitlines() if "|" in line]
    return [[cell.strip() for cell in row] for row in found if row[0].strip().startswith("`")]


def code(cell: str) -> str:
    return cell.strip("`")


def test_every_setting_is_documented_with_its_default():
    documented = {code(row[0]): code(row[1]) for row in rows(sections("settings.md")["Settings"])}
    defaults = {
        f"RIS_{name.upper()}": "unset" if field.default is None else str(field.default)
        for name, field in Settings.model_fields.items()
    }
    assert documented == defaults


def test_every_command_is_documented():
    documented = {
        heading.removeprefix("ris ")
        for heading in sections("commands.md")
        if heading.startswith("ris ")
    }
    assert documented == set(commands())


@pytest.mark.parametrize(
    "name", ["demo", "ingest", "query", "eval", "verify", "up", "reindex", "feed add"]
)
def test_the_test_of_options_sees_options(name: str):
    assert options(name)


def test_every_option_is_documented():
    documented = {
        name: {option for row in rows(text) for option in re.findall(r"--[a-z-]+", row[0])}
        for heading, text in sections("commands.md").items()
        if (name := heading.removeprefix("ris ")) != heading
    }
    assert documented == {name: options(name) for name in commands()}


@cache
def commands() -> dict[str, Any]:
    """Commands by name; those of a group as `feed add`."""
    return dict(_commands(typer.main.get_group(app), ""))


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def options(name: str) -> set[str]:
    command = commands()[name]
    return {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--") and option != "--help"
    }


def test_every_table_and_column_is_documented():
    documented = {
        code(heading): {code(row[0]) for row in rows(text)}
        for heading, text in sections("schema.md").items()
    }
    assert documented == {
        name: set(table.columns.keys()) for name, table in metadata.tables.items()
    }


def kinds(kind: type[RisError] = RisError) -> Iterator[type[RisError]]:
    for found in kind.__subclasses__():
        yield found
        yield from kinds(found)


def test_every_error_code_is_documented_and_whether_it_is_retried():
    documented = {code(row[0]): row[1] for row in rows(sections("errors.md")["Codes"])}
    ours = [kind for kind in kinds() if kind.__module__.startswith("worker.")]
    assert documented == {kind.code: "yes" if kind.retryable else "no" for kind in ours}
    assert len({kind.code for kind in ours}) == len(ours)


def test_every_code_of_jobs_is_documented():
    documented = {code(row[0]) for row in rows(sections("errors.md")["Codes of jobs only"])}
    assert documented == {UNEXPECTED, WORKER_LOST}


def test_every_strategy_is_documented():
    table = rows(sections("search.md")["Strategies"])
    assert sorted(code(row[0]) for row in table) == sorted(strategy.value for strategy in Strategy)
    assert ["`default`", f"stands for `{DEFAULT_STRATEGY.value}`"] in table


def test_every_measured_strategy_is_named():
    assert set(STRATEGIES) <= set(re.findall(r"`([a-z-]+)`", sections("evaluation.md")["Report"]))


def test_every_decision_is_listed():
    text = sections("architecture.md")["Decisions"]
    listed = set(re.findall(r"\(decisions/([\w-]+\.md)\)", text))
    assert listed == {page.name for page in (DOCS / "decisions").iterdir()}


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as made by GitHub."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_documentation_resolve(page: Path):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        if not linked.is_file() or (anchor and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    rows = re.findall(r"^\| (?!Promise|-)(.*) \|$", text, re.MULTILINE)
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert not missing
    assert rows and all("::" in row for row in rows)


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files of the repository, new ones included; ignored ones left out."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: there is no list of the repository's files")
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", FORBIDDEN)
def test_the_repository_speaks_of_the_product_only(what: str, tracked: list[Path]):
    pattern = re.compile(FORBIDDEN[what], re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in tracked
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert len(tracked) > len(PAGES)
    assert not found


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a path of one machine", "see /" + "work/main"),
        ("a package registry's host", "https://PyPI" + ".org/simple"),
        ("a word that is not ours", "a Moon" + "shot"),
    ],
)
def test_forbidden_words_are_recognised(what: str, line: str):
    assert re.search(FORBIDDEN[what], line, re.IGNORECASE)
    assert not re.search(FORBIDDEN[what], "docs/framework/page at ../work/x", re.IGNORECASE)
