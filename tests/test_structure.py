"""The structure that CONTRIBUTING.md describes: imports, dependencies, tests, configurations and CI."""

import ast
import functools
import importlib.metadata
import re
import sys
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest
import yaml

import hf_plasticity
from hf_plasticity.configs import FOLDER
from hf_plasticity.experiment import parse_experiment
from support.launch import ROOT


if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib")

PACKAGE = "hf_plasticity"
# Imports of the lowest folders from this package, in addition to themselves.
BOTTOM = {"records": {"errors"}, "models": {"errors"}, "metrics": {"errors"}, "network": {"errors"}}
# Folders, and the folders above them that they must not import, directly or indirectly.
ABOVE = {
    "data": {"trainer", "probing", "diagnostics", "experiment", "hub", "analysis"},
    "diagnostics": {"trainer", "probing", "experiment", "hub", "analysis"},
    "mitigations": {"trainer", "probing", "experiment", "hub", "analysis"},
    "probing": {"trainer", "experiment", "hub", "analysis"},
    "trainer": {"experiment", "hub", "analysis", "ladder", "planning", "cli"},
    "analysis": {"trainer", "probing", "network", "experiment", "hub", "cli"},
}
# Names of imports whose distribution has another name.
DISTRIBUTIONS = {"yaml": "pyyaml", "huggingface_hub": "huggingface-hub"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


@functools.cache
def imports(module: str) -> set[str]:
    """The modules that a module imports, in functions too, by their full names; `if TYPE_CHECKING:` left out."""
    path, found = MODULES[module], set()
    package = (module if path.name == "__init__.py" else module.rpartition(".")[0]).split(".")

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                name = ".".join([*base, *([child.module] if child.module else [])])
                names = {f"{name}.{alias.name}" for alias in child.names}
                found.update(names & MODULES.keys() or {name})
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def room(module: str) -> str:
    """The folder or file of the package that a module belongs to."""
    return module.split(".")[1] if "." in module else PACKAGE


@functools.cache
def rooms() -> dict[str, set[str]]:
    """For each folder, the folders that it imports, also in functions. The package itself has only names."""
    graph: dict[str, set[str]] = {}
    for module in MODULES.keys() - {PACKAGE}:
        others = {room(name) for name in imports(module) & MODULES.keys()}
        graph.setdefault(room(module), set()).update(others - {room(module), PACKAGE})
    return graph


def test_no_module_imports_one_that_imports_it_not_even_in_a_function():
    graph = {module: imports(module) & MODULES.keys() - {PACKAGE} for module in MODULES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle
    assert len(order) >= len(MODULES) - 1


def test_no_folder_imports_one_that_imports_it():
    assert list(TopologicalSorter(rooms()).static_order())


@pytest.mark.parametrize("name", BOTTOM)
def test_the_lowest_folders_import_nothing_above(name):
    assert rooms()[name] <= BOTTOM[name]


@pytest.mark.parametrize("name", ABOVE)
def test_a_folder_does_not_mention_those_above(name):
    graph, reached, waiting = rooms(), set(), [name]
    while waiting:
        for other in graph.get(waiting.pop(), set()) - reached:
            reached.add(other)
            waiting.append(other)
    assert not reached & ABOVE[name]


def test_the_contributing_guide_lists_every_folder_above_those_that_it_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"^  (\w+)/ ", text, flags=re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert sorted(listed) == sorted(folders)
    for name in listed:
        for other in rooms()[name] & folders - {"configs"}:
            assert listed.index(other) > listed.index(name), f"{name} imports {other}"


def test_every_imported_package_is_declared():
    imported = {name.split(".")[0] for module in MODULES for name in imports(module)}
    imported -= {PACKAGE, *sys.stdlib_module_names}
    project = pyproject()["project"]
    declared = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    known = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in declared}
    assert {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in imported} <= known


def test_the_version_is_in_one_place():
    assert "version" in pyproject()["project"]["dynamic"] and "version" not in pyproject()["project"]
    assert pyproject()["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hf_plasticity.__version__"}
    assert importlib.metadata.version("hf-plasticity") == hf_plasticity.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_plasticity.__version__
    assert f"version = {{{hf_plasticity.__version__}}}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["continual", "probe", "ladder", "benchmark"])
def test_a_recipe_is_three_statements(name):
    assert len(ast.parse((ROOT / "recipes" / f"{name}.py").read_text()).body) == 3


def test_the_workflow_of_github_calls_the_script_of_ci():
    [workflow] = (ROOT / ".github" / "workflows").glob("*.yml")
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_every_warning_that_is_ignored_is_named():
    for entry in pyproject()["tool"]["pytest"]["ini_options"]["filterwarnings"]:
        action, message, category, *_ = [*entry.split(":"), "", ""]
        assert action == "ignore" and message and category, f"'{entry}' is not ignore:MESSAGE:CATEGORY"


def test_tests_mirror_the_package_and_import_no_other_test():
    others = {"support", "docs", "cuda"}
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")} - {ROOT / "tests"}
    assert {folder.name for folder in folders} - others <= {room(module) for module in MODULES}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(part.startswith("test_") for name in names for part in name.split(".")), path


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_names_only_files_that_exist(path):
    for name in re.findall(r"[\w./]+\.(?:ya?ml|py|md)\b", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), f"{path.name} names {name}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_configuration_is_found_by_its_name(path, tmp_path):
    config = parse_experiment(["--config", path.stem, "--data_dir", str(tmp_path), "--use_cpu"])
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= config.roles.keys()


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
