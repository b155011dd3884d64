"""The rate limit service's files: what is read out of good ones, and what is said about bad ones."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from sidecar.core.descriptors import Counting, RateLimitOptions, Unit
from sidecar.core.limits import Algorithm
from sidecar.policy.faults import PolicyError
from sidecar.policy.ratelimit_document import KEYS
from sidecar.policy.ratelimit_files import FILES_MAX, load_directory

DATA = Path(__file__).parent / "ratelimit"
BAD = sorted((DATA / "bad").iterdir())
EXPECT = "# expect "


@dataclass(frozen=True)
class Entry:
    key: str
    value: str


def find(config, domain, *pairs):
    return config.domains[domain].find([Entry(*pair) for pair in pairs])


def write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return directory


def faults(directory: Path) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load_directory(directory)
    return [str(fault).removeprefix(f"{directory}/") for fault in caught.value.faults]


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_a_fault_is_named_with_its_place_and_what_is_accepted(file, tmp_path):
    """Each golden file has one fault, and exactly the one that its first line announces is reported."""
    shutil.copy(file, tmp_path)
    expected = file.read_text().splitlines()[0].removeprefix(EXPECT)
    assert faults(tmp_path) == [f"{file.name}:{expected}"]


def test_every_key_of_the_format_is_read():
    """The sixteen keys are accepted where they belong, and land in the compiled limits."""
    assert len(KEYS) == 16
    config = load_directory(DATA / "good")
    five = find(config, "every", ("plain", "one"))
    assert (five.name, five.unit, five.limit.requests, five.replaces) == ("five", Unit.SECOND, 5, {"other"})
    free = find(config, "every", ("free", "x"))
    assert (free.name, free.limit) == ("free", None)
    deep = find(config, "every", ("path", "/abc"), ("user", "u"))
    assert (deep.unit, deep.limit.requests, deep.shadow_mode, deep.quota_mode) == (Unit.MONTH, 2**32 - 1, True, True)
    assert deep.patterns == ((0, "path", "/a*"),)
    assert find(config, "every", ("path", "/abc"), ("none", "u")) is None
    assert [limit.stats.limit for limit in config.domains["every"].limits] == [
        "plain_one",
        "free",
        "path_/a*.user",
    ]


def test_plain_numbers_and_words_are_text():
    """As in the reference, a number or a boolean where text belongs is taken as it is written; null is absence."""
    config = load_directory(DATA / "good")
    shadow = find(config, "5", ("404", "true"))
    assert (shadow.shadow_mode, shadow.limit.requests) == (True, 0)
    assert find(config, "5", ("nothing", "x")) is None
    assert find(config, "5", ("leading", "010")).unit is Unit.WEEK


def test_scalars_and_merge_keys_read_as_in_go():
    """What Go's YAML reader makes of plain scalars and merge keys is what a file means here, too."""
    config = load_directory(DATA / "good")
    limits = {
        pair: (found.limit.requests, found.unit)
        for pair in [
            ("base", "x"),
            ("merged", "x"),
            ("other", "x"),
            ("account", "1234567890123456789"),
            ("octal", "0o17"),
            ("binary", "1_0"),
            ("date", "2026-01-02"),
        ]
        if (found := find(config, "go", pair)) is not None
    }
    assert limits == {
        ("base", "x"): (1000, Unit.MINUTE),
        ("merged", "x"): (1000, Unit.MINUTE),
        ("other", "x"): (7, Unit.HOUR),
        ("account", "1234567890123456789"): (16, Unit.DAY),
        ("octal", "0o17"): (8, Unit.DAY),
        ("binary", "1_0"): (3, Unit.DAY),
        ("date", "2026-01-02"): (0, Unit.DAY),
    }
    assert find(config, "go", ("octal", "0o17")).shadow_mode
    assert find(config, "go", ("free", "x")).limit is None
    assert find(config, "go", ("yes", "x")).metadata == {
        "on": True,
        "number": 8,
        "ratio": 1000.0,
        "none": None,
        "list": [False, "off", {"deep": 31}],
    }


def test_a_key_without_effect_is_loaded_with_a_warning():
    """As in the reference it changes nothing; but it is named, with its place and where it would have an effect."""
    config = load_directory(DATA / "good")
    assert not find(config, "go", ("yes", "x")).shadow_mode
    place, place_of_more = "it stands in a descriptor", "it stands at the top of the file or in a descriptor"
    assert [warning.rpartition("/")[2] for warning in config.warnings] == [
        f"as_go_reads_it.yaml:22: descriptors[8].rate_limit.{key}: the key '{key}' has no effect here; {where}"
        for key, where in (("shadow_mode", place), ("descriptors", place_of_more))
    ]


def test_all_faults_of_all_files_are_reported_at_once(tmp_path):
    """One fault does not hide another, in the same file or in the next."""
    write(
        tmp_path,
        a="domain: a\ndescriptors:\n  - {}\n  - {key: k, rate_limit: {unit: x, requests_per_unit: y}}\n",
        b="descriptors:\n  - oops\n",
        c="domain: [\n",
    )
    assert [fault.split(": ")[:2] for fault in faults(tmp_path)] == [
        ["a.yaml:3", "descriptors[0].key"],
        ["a.yaml:4", "descriptors[1].rate_limit.requests_per_unit"],
        ["a.yaml:4", "descriptors[1].rate_limit.unit"],
        ["b.yaml:1", "domain"],
        ["b.yaml:2", "descriptors[0]"],
        ["c.yaml:2", "not YAML"],
    ]


def test_a_domain_stands_in_one_file(tmp_path):
    """Two files with the same domain are refused, and both are named."""
    write(tmp_path, a="domain: d\n", b="# second\ndomain: d\n")
    message = f"duplicate domain 'd' in config file: it is already in {tmp_path}/a.yaml:1"
    assert faults(tmp_path) == [f"b.yaml:2: domain: {message}; one file a domain, or ratelimit.merge_domains"]


MERGED = RateLimitOptions(merge_domains=True)


def test_domains_are_merged_where_it_is_asked_for(tmp_path):
    """The descriptors of several files are one list, in the order of the files' names."""
    limit = "rate_limit: {unit: day, requests_per_unit"
    write(
        tmp_path,
        a=f"domain: d\ndescriptors: [{{key: k, value: 'a*', {limit}: 1}}}}]\n",
        b=f"domain: d\ndescriptors: [{{key: k, value: 'ab*', {limit}: 2}}}}, {{key: k, {limit}: 3}}}}]\n",
    )
    config = load_directory(tmp_path, MERGED)
    assert [find(config, "d", ("k", value)).limit.requests for value in ("abc", "x")] == [1, 3]


def test_merged_domains_must_not_have_a_descriptor_twice(tmp_path):
    """A composite key that two files have is refused; both places are named."""
    write(tmp_path, a="domain: d\ndescriptors: [{key: k}]\n", b="domain: d\ndescriptors:\n- {key: k}\n")
    with pytest.raises(PolicyError) as caught:
        load_directory(tmp_path, MERGED)
    [fault] = caught.value.faults
    assert (fault.file, fault.line) == (f"{tmp_path}/b.yaml", 3)
    assert fault.message == "duplicate descriptor composite key 'd.k'"
    assert fault.accepted == f"each key and value once a level; the first is in {tmp_path}/a.yaml:2"


TREE = """
domain: shop
descriptors:
  - key: path
    value: /orders*
    rate_limit: {unit: hour, requests_per_unit: 9}
    descriptors:
      - {key: user, rate_limit: {unit: hour, requests_per_unit: 5}}
  - {key: other, rate_limit: {unit: minute, requests_per_unit: 7}}
"""
SLIDING, GCRA = Counting(algorithm=Algorithm.SLIDING_WINDOW), Counting(algorithm=Algorithm.GCRA, burst=2)


def test_algorithms_are_chosen_for_domains_and_paths(tmp_path):
    """The longest path counts, for all limits there and below; without one a limit counts as the reference does."""
    write(tmp_path, shop=TREE, rest="domain: rest\ndescriptors: [{key: k, rate_limit: {unit: day}}]\n")
    chosen = {"shop": SLIDING, "shop/path_/orders*.user": GCRA}
    config = load_directory(tmp_path, RateLimitOptions(algorithms=chosen))
    found = {
        "path": find(config, "shop", ("path", "/orders/1")).limit,
        "user": find(config, "shop", ("path", "/orders/1"), ("user", "u")).limit,
        "other": find(config, "shop", ("other", "u")).limit,
        "override": config.domains["shop"].override(3, Unit.DAY).limit,
        "rest": find(config, "rest", ("k", "v")).limit,
    }
    assert {name: (limit.algorithm, limit.count_denied, limit.burst) for name, limit in found.items()} == {
        "path": (Algorithm.SLIDING_WINDOW, False, 0),
        "user": (Algorithm.GCRA, False, 2),
        "other": (Algorithm.SLIDING_WINDOW, False, 0),
        "override": (Algorithm.SLIDING_WINDOW, False, 0),
        "rest": (Algorithm.FIXED_WINDOW, True, 0),
    }


def test_an_algorithm_for_nothing_is_a_fault(tmp_path):
    """A domain or path that is not there is named, since a limit somewhere counts otherwise than someone meant."""
    write(tmp_path, shop=TREE)
    for name in ("shp", "shop/path", "shop/path_/orders*.nobody"):
        with pytest.raises(PolicyError, match="there is no domain or descriptor"):
            load_directory(tmp_path, RateLimitOptions(algorithms={name: SLIDING}))


def test_an_algorithm_that_cannot_count_a_limit_is_a_fault(tmp_path):
    """The domain's file is named, and why."""
    write(tmp_path, shop=TREE)
    impossible = Counting(algorithm=Algorithm.SLIDING_WINDOW, burst=3)
    with pytest.raises(
        PolicyError, match=r"shop\.yaml:2: domain: ratelimit\.algorithms does not fit .*burst is for gcra"
    ):
        load_directory(tmp_path, RateLimitOptions(algorithms={"shop": impossible}))


def test_other_files_and_directories_are_passed_over(tmp_path):
    """A mounted ConfigMap's dot-directories, editors' files and subdirectories are no configuration; links are."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "d.yaml").write_text("domain: d\n")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "d.yaml").symlink_to("..data/d.yaml")
    (tmp_path / ".hidden.yaml").write_text("broken: [")
    (tmp_path / "notes.txt").write_text("broken: [")
    (tmp_path / "sub.yaml").mkdir()
    assert list(load_directory(tmp_path).domains) == ["d"]


def test_a_directory_that_cannot_be_read_is_a_fault(tmp_path):
    """A missing directory is told apart from an empty one; neither becomes a configuration without limits."""
    missing = tmp_path / "missing"
    assert faults(missing) == [f"{missing}: cannot be read: No such file or directory; a readable directory"]
    assert faults(tmp_path) == [
        f"{tmp_path}: the directory holds no rate limit file; 1 to {FILES_MAX} files named *.yaml or *.yml"
    ]


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path):
    """A link that leads nowhere is named."""
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    assert faults(tmp_path) == ["gone.yaml: cannot be read: No such file or directory; a readable YAML file"]


def test_the_number_of_files_is_bounded(tmp_path):
    """The stated number of files is read, one more is refused."""
    write(tmp_path, **{f"f{number}": f"domain: d{number}\n" for number in range(FILES_MAX)})
    assert len(load_directory(tmp_path).domains) == FILES_MAX
    write(tmp_path, more="domain: more\n")
    assert "1025 rate limit files" in faults(tmp_path)[0]


def nested(levels: int) -> str:
    rate_limit = "{unit: day, requests_per_unit: 1, replaces: [{name: other}]}"
    return f"domain: d\n{'descriptors: [{key: k, ' * levels}rate_limit: {rate_limit}{'}]' * levels}\n"


def test_descriptors_nest_thirty_deep(tmp_path):
    """Thirty levels are read and matched; one more, with all that may hang below it, is refused."""
    write(tmp_path, d=nested(30))
    assert find(load_directory(tmp_path), "d", *[("k", "v")] * 30) is not None
    write(tmp_path, d=nested(31))
    assert faults(tmp_path) == ["d.yaml:2: nested too deeply; at most 64 levels"]
