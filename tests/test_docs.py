"""What the documents show is what the program does: snippets load, links lead somewhere, tables hold."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from sidecar import cli
from sidecar.policy.compile import load
from sidecar.policy.document import Document
from sidecar.policy.ratelimit_files import load_directory
from tests.support.certificates import make_certificates
from tests.support.internal_keys import write_keys

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXPECTED = {
    "api-keys",
    "architecture",
    "connect",
    "drop-in",
    "conformance",
    "operating-limits",
    "getting-started",
    "internal-tokens",
    "introspection",
    "limits",
    "metrics",
    "migrate",
    "policy",
    "ratelimit",
    "redis",
    "rules",
    "threat-model",
    "tokens",
}
ENVOY_KEYS = {"http_filters", "static_resources"}


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


SNIPPETS = [
    pytest.param(page, text, id=f"{page.name}-{number}") for page in PAGES for number, text in enumerate(blocks(page))
]


def commands(page: Path) -> list[str]:
    """The commands of `sidecar` in a page's code blocks; a line that ends with a backslash goes on."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^ {4}(?:[^#\n]*\| )?sidecar (.+)$", text, re.MULTILINE)


COMMANDS = [pytest.param(line, id=line.split("  ")[0][:40]) for page in PAGES for line in commands(page)]


@pytest.fixture(scope="session")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that policies of the documents name."""
    directory = tmp_path_factory.mktemp("beside")
    write_keys(directory / "internal-keys", "2026-12-01.pem")
    (directory / "introspection-secret").write_text("opensesame\n")
    (directory / "secrets").mkdir(exist_ok=True)
    (directory / "secrets" / "pepper").write_text("1: " + "b25l" * 11)
    (directory / "secrets" / "dpop-nonce").write_text("n" * 43)
    (directory / "keys").mkdir(exist_ok=True)
    (directory / "keys" / "partners.yaml").write_text("keys: []")
    shutil.copy(make_certificates(directory).ca, directory / "cluster-ca.crt")
    return directory


@pytest.mark.parametrize(("page", "text"), SNIPPETS)
def test_snippets_load(tmp_path: Path, beside: Path, page: Path, text: str) -> None:
    """Each block of YAML is a policy, a rate limit file, or Envoy's; the first two load as they stand."""
    written = yaml.safe_load(text)
    limits = [block for block in blocks(page) if "domain" in yaml.safe_load(block)]
    directory = tmp_path / "ratelimit"
    directory.mkdir()
    for number, block in enumerate(limits):
        (directory / f"{number}.yaml").write_text(block)
    if "domain" in written:
        assert written["domain"] in load_directory(directory).domains
    elif not ENVOY_KEYS & written.keys():
        assert written.keys() <= Document.model_fields.keys()
        shutil.copytree(beside, tmp_path, dirs_exist_ok=True)
        policy = tmp_path / "sidecar.yaml"
        policy.write_text(text)
        assert load(policy, 1).policy.generation == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file of the project and, after #, a heading of it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            known = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path) -> None:
    """Who is told where the proof is finds it there."""
    named = re.findall(r"\btests/[\w/.-]*\.py\b", page.read_text())
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert named or page.name != "threat-model.md"


def test_every_page_is_there_and_can_be_found() -> None:
    """The README links each page of docs/, and the pages that a reader needs exist."""
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    readme = (ROOT / "README.md").read_text()
    assert pages >= EXPECTED
    assert not [page for page in pages if f"(docs/{page}.md)" not in readme]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_these_options(line: str) -> None:
    """Each command line that is shown is one that the program takes."""
    arguments = shlex.split(line, comments=True)
    end = next((n for n, argument in enumerate(arguments) if argument in {">", "|"}), len(arguments))
    assert cli._parser().parse_args(arguments[:end])


def test_the_rules_page_says_which_rule_applies(tmp_path: Path) -> None:
    """Each row of its table is what the policy above it does."""
    page = ROOT / "docs" / "rules.md"
    policy = tmp_path / "sidecar.yaml"
    policy.write_text(blocks(page)[0])
    rules = load(policy, 1).policy.rules
    rows = re.findall(r"^\| `(\w+) (\S+) (\S+)` \| `([\w-]+)` \|", page.read_text(), re.MULTILINE)
    assert {name for *_, name in rows} | {"beta"} == {rule.name for rule in rules.rules}
    for method, host, path, name in rows:
        found = rules.match(host, path, method, {})
        assert found is not None
        assert found[0].name == name, (method, host, path)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "policy.md"], ids=lambda page: page.name)
def test_settings_that_are_mentioned_exist(page: Path) -> None:
    """What reads like a setting of a section (`server.drain_grace`) is one."""
    sections = {name: field.annotation for name, field in Document.model_fields.items()}
    for section, key in re.findall(r"`(server|redis|ratelimit|audit|log|admin)\.([a-z_]+)", page.read_text()):
        assert key in str(
            getattr(sections[section], "model_fields", None) or sections[section].__args__[0].model_fields
        )
