"""Who may import whom in the package, read from its source; and what must be light to import."""

import ast
import pathlib
import subprocess
import sys

import pytest

import spkd_keras

PACKAGE = pathlib.Path(spkd_keras.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
LONGEST_FILE = 350

FOUNDATION = {"experiment", "losses", "messages", "models", "optimizers", "observer", "ports", "prefetching", "storage"}
LIBRARY = FOUNDATION | {"data", "distiller"}
READERS = {"run_files", "report", "plots", "page"}
# Each part of the package, and the parts that it may import besides itself.
ALLOWED: dict[str, set[str]] = {
    **{part: set() for part in FOUNDATION},
    "experiment": {"messages"},
    "models": {"messages"},
    "storage": {"experiment", "messages"},
    "data": FOUNDATION,
    "distiller": {"losses", "models", "optimizers", "prefetching"},  # plain arguments only: no experiment
    "cache": FOUNDATION | {"data", "distiller"},
    "training": LIBRARY | {"cache"},
    "search": LIBRARY | READERS | {"cache", "training"},
    "export": LIBRARY | {"training"},
    "run_files": {"experiment"},
    "report": {"experiment", "plots", "run_files"},
    "page": {"experiment", "plots", "report", "run_files"},
    "frontier": LIBRARY | READERS | {"training", "export"},
    "plots": {"experiment"},
    "cli": LIBRARY | READERS | {"cache", "training", "search", "export", "frontier"},
    "__main__": {"cli"},
    # The package itself loads its names lazily: what it imports, it imports for type checkers.
    "": LIBRARY | {"cache", "export", "search"},
}


def part_of(module):
    """The first name under the package: `spkd_keras.data.splits` is in `data`, `spkd_keras` in ``."""
    return module.split(".")[1] if "." in module else ""


def imported_modules(source, module, is_package):
    """Yields the full name of everything imported anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".") if is_package else module.split(".")[:-1]
            base = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from spkd_keras import data` imports a module, `from spkd_keras.data import Images` a name.
            yield from (f"{origin}.{alias.name}" if origin == "spkd_keras" else origin for alias in node.names)


def violations(source, module, is_package=False):
    """Says which imports of a file go against the arrows."""
    part = part_of(module)
    if part not in ALLOWED:
        return [f"{module}: `{part}` has no place in the layers"]
    wrong = []
    for name in imported_modules(source, module, is_package):
        if name.split(".")[0] != "spkd_keras":
            continue
        other = part_of(name)
        if other not in {"", "__version__", part} | ALLOWED[part]:
            wrong.append(f"{module} imports {name}")
    return wrong


def public_definitions(tree):
    """Yields public functions and classes, and the public methods of those classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (inner for inner in public_definitions(node) if not is_setter(inner))


def is_setter(node):
    return any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in node.decorator_list)


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module):
    path = MODULES[module]
    assert violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spkd_keras.losses.base", "from spkd_keras.experiment import Experiment"),
        ("spkd_keras.losses.base", "import spkd_keras.distiller"),
        ("spkd_keras.models.blocks", "from spkd_keras import experiment"),
        ("spkd_keras.models.blocks", "from ..losses import base"),
        ("spkd_keras.distiller.model", "from ..experiment import schema"),
        ("spkd_keras.distiller.model", "from spkd_keras.data import Images"),
        ("spkd_keras.experiment.schema", "def late():\n    from spkd_keras.losses import LOSSES"),
        ("spkd_keras.data.splits", "class Lazy:\n    def load(self):\n        import spkd_keras.training"),
        ("spkd_keras.training.run", "from spkd_keras.report import summarise"),
        ("spkd_keras.report", "from spkd_keras import data"),
        ("spkd_keras.plots", "from spkd_keras.losses import similarity_matrix"),
        ("spkd_keras.observer", "from . import cli"),
        ("spkd_keras.helpers", "import json"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spkd_keras.distiller.model", "from spkd_keras import losses, models\nfrom .term import Term"),
        ("spkd_keras.training.run", "import spkd_keras\nfrom spkd_keras import data\nimport tensorflow"),
        ("spkd_keras.report", "def draw():\n    from spkd_keras import plots"),
        ("spkd_keras.cli", "import spkd_keras.training.run"),
    ],
)
def test_a_right_import_is_left_alone(module, source):
    assert violations(source, module) == []


def test_relative_imports_are_resolved():
    assert list(imported_modules("from .. import x", "spkd_keras.data.splits", False)) == ["spkd_keras.x"]
    assert list(imported_modules("from .splits import x", "spkd_keras.data", True)) == ["spkd_keras.data.splits"]


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short_and_named_for_what_they_hold(module):
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines < LONGEST_FILE, f"{module} has {lines} lines"
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(module.split("."))


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_has_a_docstring(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{module} says nothing of itself"
    assert [node.name for node in public_definitions(tree) if not ast.get_docstring(node)] == []


# Starting Python anew: in this process TensorFlow is loaded already.
@pytest.mark.parametrize(
    "module",
    [
        "spkd_keras",
        "spkd_keras.experiment",
        "spkd_keras.frontier",
        "spkd_keras.report",
        "spkd_keras.plots",
        "spkd_keras.page",
        "spkd_keras.cli",
        "spkd_keras.export",
        "spkd_keras.export.formats",
        "spkd_keras.observer",
        "spkd_keras.ports",
    ],
)
def test_light_modules_do_not_import_tensorflow(module):
    code = f"import sys, {module}; print(sorted({{'tensorflow', 'keras'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_lazy_names_are_all_there():
    for name in spkd_keras.__all__:
        assert getattr(spkd_keras, name) is not None
    assert set(spkd_keras.__all__) <= set(dir(spkd_keras))
    with pytest.raises(AttributeError, match=r"no attribute 'Distillery'.*Available: Distiller, Term"):
        spkd_keras.Distillery  # noqa: B018
    for name in spkd_keras.export.__all__:
        assert getattr(spkd_keras.export, name) is not None
    with pytest.raises(AttributeError, match=r"'spkd_keras.export' has no attribute 'litert'. Available: FORMATS"):
        spkd_keras.export.litert  # noqa: B018
