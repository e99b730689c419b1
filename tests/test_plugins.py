"""Strategies of other packages: found by all that ask, and harmless where they are broken."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from calling import python_path
from fresh import run_code
from invented import choice, entry, write_for_this_cpu

import autogemm
from autogemm.device import device_of
from autogemm.errors import PluginWarning
from autogemm.problem import contiguous_problem
from autogemm.strategies import STRATEGIES, Candidate
from autogemm.strategies.plugins import ByName, Strategies, find

ROOT = Path(autogemm.__file__).parents[1]
OWN = {strategy.name for strategy in STRATEGIES.own}

WORKING = '''
import torch
from autogemm.precision import ErrorBound, growth
from autogemm.strategies import Strategy

print("loaded")

class Widened(Strategy):
    name = "{name}"
    dtypes = frozenset({{torch.float32}})

    def bound(self, problem, params):
        return ErrorBound(4.0, growth(problem.dtype, problem.k))

    def bind(self, problem, device, params):
        def run(alpha, A, B, beta, C, out):
            P = torch.mm(A.double(), B.double()).mul_(alpha)
            P = (P if C is None else P.add_(C.double(), alpha=beta)).float()
            return P if out is None else out.copy_(P)
        return run
'''


def install(
    directory: Path, module: str, text: str, points: str | None = None, version: str = "1.0"
) -> None:
    """A distribution named after its module, as pip would leave it."""
    (directory / f"{module}.py").write_text(text)
    facts = directory / f"{module}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    points = points or f"widened = {module}:Widened"
    (facts / "entry_points.txt").write_text(f"[autogemm.strategies]\n{points}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed packages, on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def test_a_class_and_an_instance_stand_behind_the_packages_own(site: Path) -> None:
    install(site, "zeta_plugin", WORKING.format(name="zeta"))
    text = WORKING.format(name="alpha") + "\nready = Widened()\n"
    install(site, "alpha_plugin", text, "anything = alpha_plugin:ready")
    strategies = Strategies(STRATEGIES.own)
    assert [strategy.name for strategy in strategies][-2:] == ["alpha", "zeta"]
    assert [strategy.name for strategy in strategies][:-2] == [s.name for s in STRATEGIES.own]
    assert ByName(strategies)["zeta"] is strategies[-1]
    assert strategies.plugins.origins == {"alpha": "alpha_plugin 1.0", "zeta": "zeta_plugin 1.0"}


def test_entry_points_are_read_once_and_not_before_they_are_asked_for(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    from autogemm.strategies import plugins

    reads = []
    monkeypatch.setattr(plugins, "entry_points", lambda group: reads.append(group) or [])
    strategies = Strategies(STRATEGIES.own)
    names = ByName(strategies)
    assert reads == []
    assert names["addmm"] is strategies[0]
    assert "nothing" not in names
    assert len(strategies) == len(list(names)) == len(STRATEGIES.own)
    assert reads == ["autogemm.strategies"]


@pytest.mark.parametrize(
    ("text", "points", "reason"),
    [
        ("import not_there_at_all", None, "ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", None, "SystemExit: 3"),
        ("Widened = 3", None, "expected a Strategy, its class or an instance; found 3"),
        ("class Widened: pass", None, "expected a Strategy"),
        ("x = 1", None, "AttributeError"),
        (WORKING.format(name="addmm"), None, "autogemm has a strategy named 'addmm' itself"),
        (WORKING.format(name="two words"), None, "its name is 'two words'; expected a lower-case"),
        (WORKING.format(name="").replace('name = ""', "pass"), None, "its name is None"),
        (WORKING.format(name="widened").replace("def bind", "def tie"), None, "TypeError"),
        (
            WORKING.format(name="widened").replace("{torch.float32}", "{torch.int8}"),
            None, "expected a frozenset of float16",
        ),
        (
            WORKING.format(name="n").replace(
                'name = "n"', '@property\n    def name(self): raise ValueError("no name")'
            ),
            None, "ValueError: no name",
        ),
        (
            WORKING.format(name="n").replace('name = "n"', 'name = "n"; packages = "numpy"'),
            None, "its packages are 'numpy'; expected a tuple of words",
        ),
        (
            "class X:\n    def __repr__(self): raise ValueError('no words')\nWidened = X()",
            None, "ValueError: no words",
        ),
        (
            "class X(Exception):\n    def __str__(self): raise ValueError\nraise X()",
            None, "X: without a word",
        ),
    ],
)  # fmt: skip
def test_what_is_broken_is_left_out_with_one_warning_that_names_it(
    text: str, points: str | None, reason: str, site: Path
) -> None:
    install(site, "a_broken_plugin", text, points)
    install(site, "good_plugin", WORKING.format(name="good"))
    strategies = Strategies(STRATEGIES.own)
    with pytest.warns(PluginWarning) as caught:
        names = [strategy.name for strategy in strategies]
    assert names[-1] == "good"
    assert len(names) == len(STRATEGIES.own) + 1
    (warning,) = caught
    assert "of a_broken_plugin 1.0: " in str(warning.message)
    assert reason in str(warning.message)
    assert len(strategies.plugins.left_out) == 1


@pytest.mark.parametrize("damaged", ["[autogemm.strategies]\nwidened\n", "[other]\nwidened\n"])
def test_a_damaged_list_of_entry_points_costs_the_plugins_alone(damaged: str, site: Path) -> None:
    install(site, "a_broken_plugin", WORKING.format(name="widened"))
    (site / "a_broken_plugin-1.0.dist-info" / "entry_points.txt").write_text(damaged)
    strategies = Strategies(STRATEGIES.own)
    with pytest.warns(PluginWarning, match=r"of every plug-in: .*entry_points.txt is damaged \("):
        assert list(strategies) == list(STRATEGIES.own)


def test_of_two_plugins_of_one_name_the_first_is_taken(site: Path) -> None:
    install(site, "one_plugin", WORKING.format(name="widened"))
    install(site, "two_plugin", WORKING.format(name="widened"))
    found = find(OWN)
    assert found.origins == {"widened": "one_plugin 1.0"}
    assert "one_plugin 1.0 has the name 'widened' already" in found.left_out[0]


def test_a_plugin_that_multiplies_while_it_is_imported_sees_the_packages_own(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategies = Strategies(STRATEGIES.own)
    seen: list[list[str]] = []
    monkeypatch.setattr(
        sys, "look", lambda: seen.append([s.name for s in strategies]), raising=False
    )
    install(site, "early_plugin", "import sys\nsys.look()\n" + WORKING.format(name="early"))
    assert strategies[-1].name == "early"
    assert seen == [[strategy.name for strategy in STRATEGIES.own]]


@pytest.mark.parametrize(
    ("name", "there"), [("json", True), ("not_there", False), ("not_there.at_all", False)]
)
def test_any_package_that_a_strategy_needs_is_looked_for(name: str, there: bool) -> None:
    here = device_of(torch.device("cpu"))
    assert here.has_package(name) == there
    assert pickle.loads(pickle.dumps(here)) == here
    assert pickle.loads(pickle.dumps(here)).has_package(name) == there


SESSION = """
import sys, warnings
import autogemm
assert "loaded_plugin" not in sys.modules, "import autogemm loads plug-ins"
import torch
from autogemm.device import device_of
from autogemm.problem import contiguous_problem
from autogemm.tuner import candidates_for, space_digest
A, B = torch.randn(16, 24), torch.randn(24, 8)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    D = autogemm.gemm(1.5, A, B)
torch.testing.assert_close(D, 1.5 * A @ B)
print([str(w.message).split(": ")[0] for w in caught if w.category is autogemm.PluginWarning])
here = device_of(torch.device("cpu"))
problem = contiguous_problem(16, 8, 24, torch.float32, update="none", device_type="cpu")
print("candidate", [str(c) for c in candidates_for(problem, here, ["highest"])][-1])
print("digest", space_digest(problem, here))
print("runs", autogemm.explain(1.5, A, B, precision="highest").strategy)
for line in autogemm.doctor("cpu").section("strategies"):
    if "plugin" in line:
        print("doctor", line)
"""


def session(site: Path, directory: Path, **environment: str) -> str:
    done = run_code(
        SESSION,
        {"PYTHONPATH": python_path(site, ROOT), "PATH": "", "HOME": str(directory),
         "AUTOGEMM_TUNING_DB": str(directory), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_uses_what_is_installed_and_calls_go_on_without_what_is_broken(
    tmp_path: Path,
) -> None:
    site, tables = tmp_path / "site", tmp_path / "tables"
    site.mkdir()
    tables.mkdir()
    bare = session(site, tables)
    assert "candidate widened" not in bare
    install(site, "broken_plugin", "import not_there_at_all")
    install(site, "loaded_plugin", WORKING.format(name="widened"))
    first = session(site, tables)
    assert first.count("loaded\n") == 1
    assert "[\"the strategy 'widened' (broken_plugin:Widened) of broken_plugin 1.0\"]" in first
    assert "candidate widened" in first
    assert "doctor widened (loaded_plugin 1.0): runs float32" in first
    assert "doctor left out: the strategy 'widened' (broken_plugin:Widened)" in first
    (site / "loaded_plugin-1.0.dist-info").rename(site / "loaded_plugin-1.1.dist-info")
    metadata = site / "loaded_plugin-1.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    second = session(site, tables)
    digests = {line for text in (bare, first, second) for line in text.splitlines()
               if line.startswith("digest")}  # fmt: skip
    assert len(digests) == 3, "the digest knows neither a new plug-in nor its version"


def choose_widened(tables: Path) -> None:
    """A table in which one problem's choice is the plug-in's strategy, which is not known here."""
    problem = contiguous_problem(16, 8, 24, torch.float32, update="none", device_type="cpu")
    made = entry(problem, {"highest": choice(Candidate.of("widened"))})
    write_for_this_cpu(tables, made)


def test_a_table_that_chose_a_plugin_is_followed_while_it_is_there(tmp_path: Path) -> None:
    site, tables = tmp_path / "site", tmp_path / "tables"
    site.mkdir()
    tables.mkdir()
    install(site, "loaded_plugin", WORKING.format(name="widened"))
    choose_widened(tables)
    assert "runs widened" in session(site, tables)
    absent = session(tmp_path, tables)
    assert "runs widened" not in absent
    assert "runs addmm" in absent


def test_a_plugin_that_multiplies_while_it_is_imported_does_not_hide_what_tables_say_of_it(
    tmp_path: Path,
) -> None:
    site, tables = tmp_path / "site", tmp_path / "tables"
    site.mkdir()
    tables.mkdir()
    early = "import autogemm, torch\nautogemm.gemm(1.0, torch.ones(2, 2), torch.ones(2, 2))\n"
    install(site, "loaded_plugin", early + WORKING.format(name="widened"))
    choose_widened(tables)
    assert "runs widened" in session(site, tables)


def test_what_a_plugin_raises_when_it_is_asked_is_a_line_of_the_explanation(
    tmp_path: Path,
) -> None:
    raising = "\n    def space(self, problem, device): raise KeyError('no space')\n"
    install(tmp_path, "loaded_plugin", WORKING.format(name="widened") + raising)
    code = (
        "import torch, autogemm; A = torch.ones(4, 4); autogemm.gemm(1.0, A, A); "
        "print(autogemm.explain(1.0, A, A))"
    )
    done = run_code(
        code, {"PYTHONPATH": python_path(tmp_path, ROOT), "PATH": "", "HOME": str(tmp_path)}
    )
    assert "  widened: loaded_plugin 1.0 raised KeyError: 'no space'" in done.stdout, done.stderr
