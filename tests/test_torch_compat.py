"""Private names of PyTorch are in one module, exist, and cause no warning at import."""

from __future__ import annotations

import ast
import importlib.util
from abc import ABCMeta
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from torch import nn

import torch_corr
from support.processes import run_python
from torch_corr import _torch_compat as compat
from torch_corr.functional import overrides_torch_function

PACKAGE = Path(torch_corr.__file__).parent
TOOL = Path(__file__).parent.parent / "tools" / "versions.py"


@pytest.mark.parametrize("name", compat.PRIVATE)
def test_private_name_exists(name):
    try:
        resolve_name(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{error}; what depends on it: {compat.PRIVATE[name]}")
    assert compat.PRIVATE[name]


def test_private_layer_attributes_exist():
    """The converter reads them."""
    layer = nn.Conv2d(1, 1, 1)
    assert list(layer._reversed_padding_repeated_twice) == [0, 0, 0, 0]
    assert "weight" in layer._parameters


def test_constant_functions_are_marked_for_dynamo():
    """By the attribute that ``assume_constant_result`` sets."""

    def ours():
        return 1

    marked: Any = torch.compiler.assume_constant_result(ours)
    assert marked._dynamo_marked_constant
    assert overrides_torch_function._dynamo_marked_constant


def test_missing_name_has_a_replacement_or_is_refused():
    missing = compat._private("torch._C._no_such_name", "this test")
    replaced = compat._private("torch._C._no_such_name", "this test", otherwise=len)
    del compat.PRIVATE["torch._C._no_such_name"]
    assert replaced is len
    sentence = r"has no torch\._C\._no_such_name, which torch_corr needs for this test"
    with pytest.raises(ImportError, match=sentence):
        missing(1)
    with pytest.raises(ImportError, match=sentence):
        missing.SKIP  # noqa: B018
    with pytest.raises(ImportError, match=sentence):

        class _Layer(missing):
            pass


def test_replaced_metaclass_makes_abstract_classes():
    """Values have a metaclass derived from both; ``type`` cannot precede ABCMeta."""
    meta: Any = type("Meta", (compat._PlainMeta, ABCMeta), {})
    assert isinstance(meta("Value", (), {}), ABCMeta)


def test_public_replacements_agree():
    for of in ("conv", "matmul"):
        assert compat._fp32_precision("cuda", of) == compat.fp32_precision("cuda", of)


def test_import_prints_nothing():
    """Neither warnings nor PyTorch's log."""
    run = run_python("-W", "error", "-c", "import torch_corr, torch_corr.testing")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def _names(tree):
    """The full name of each name that a module imports from PyTorch."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    names[alias.asname or "torch"] = alias.name if alias.asname else "torch"
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if name.split(".")[0] == "torch":
                    names[alias.asname or alias.name] = name
    return names


def _is_private(name):
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _private_names(source):
    """The private names of PyTorch's that a module uses, each with its line."""
    tree = ast.parse(source)
    names = _names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name for name in found if name.split(".")[0] == "torch"]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names if alias.name.split(".")[0] == "torch"]
        elif isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            found = [".".join((names[root], *rest))] if root in names and rest else []
        else:
            continue
        yield from (f"line {node.lineno}: {name}" for name in found if _is_private(name))


def test_scan_finds_private_names():
    source = """
import torch._guards
import torch
from torch.jit._trace import TracerWarning
from torch.nn.modules.conv import _LazyConvXdMixin
from torch.autograd import forward_ad
forward_ad._current_level
torch._C._is_tracing()
torch.__version__
"""
    found = {line.partition(": ")[2] for line in _private_names(source)}
    assert found == {
        "torch._guards",
        "torch.jit._trace.TracerWarning",
        "torch.nn.modules.conv._LazyConvXdMixin",
        "torch.autograd.forward_ad._current_level",
        "torch._C._is_tracing",
        "torch._C",
    }


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_private_names_are_in_one_module(path):
    if path.name == "_torch_compat.py":
        return
    found = list(_private_names(path.read_text()))
    assert not found, f"{path.relative_to(PACKAGE)}: take from _torch_compat.py what is {found}"


def test_table_of_versions_keeps_rows():
    """A run of one version keeps the rows of the others."""
    spec = importlib.util.spec_from_file_location("versions", TOOL)
    assert spec is not None
    assert spec.loader is not None
    versions: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(versions)
    rows = {
        version: versions.Row(version, "all", "5", "0", "1", "9", "0")
        for version in ("2.13.0", "2.9.1")
    }
    text = versions.write_rows(rows)
    assert versions.read_rows(text) == rows
    assert text.index("| 2.9.1 |") < text.index("| 2.13.0 |")
