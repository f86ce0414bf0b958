"""Which statements of our packages run, in every process that a test run starts.

    source --ast--> a mark before each statement --compile--> code that sets a byte of a shared file as it runs

Python 3.11's `sys.settrace`, by which coverage.py measures, doubles the time of our tests and stops at the process's end; it has no
`sys.monitoring` yet. A mark is one store into a file mapped by all processes: nothing to collect when one exits, forks or is killed, so that
Spark's workers, torchrun's ranks, reader processes and spawned commands count.

Marked code differs from the file's in its marks alone: line numbers, docstrings and `inspect.getsource` are the file's own.
"""

from __future__ import annotations

import ast
import gc
import marshal
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import sha256
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("genrank", "schemas", "kernels", "pipelines", "tokenization", "model", "examples")
# Triton reads a kernel's source and runs something else: on the GPU, or rewritten in its interpreter.
UNMARKED = ("kernels/*triton_*.py",)
FOLDER = "LINE_MARKS"  # names the environment variable that holds the run's folder
MARKS = "__line_marks__"


def measured_files() -> list[Path]:
    """Our packages' files, each once: genrank/ links the packages beside it."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [path for path in files if _is_measured(path)]


def statement_lines(tree: ast.Module) -> set[int]:
    """First lines of the statements that run: not docstrings, `...`, declarations of names, or what only a type checker reads."""
    return {child.lineno for _, children in _bodies(tree) for child in children if _runs(child)}


def lines_run(path: Path) -> set[int]:
    """Lines of a file whose statements ran in any process of the run so far."""
    hits = _marks_file(path)
    return {line for line, hit in enumerate(hits.read_bytes()) if hit} if hits.exists() else set()


def start() -> None:
    """Mark what this process imports of our packages from now on, if the environment names a folder."""
    if FOLDER in os.environ and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class Marks(mmap.mmap):
    """A byte a line of one source file, shared by all processes of the run; pickled (with a function that Spark ships) as its path."""

    source: str

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return marks_of, (self.source,)


def marks_of(source: str) -> Marks | bytearray:
    """The marks of a source file; where no run measures, as in a process that outlives its run, marks that nobody reads."""
    path = Path(source)
    length = path.read_bytes().count(b"\n") + 2
    if FOLDER not in os.environ:
        return bytearray(length)
    with _marks_file(path).open("a+b") as file:
        file.truncate(length)
        marks = Marks(file.fileno(), length)
    marks.source = source
    return marks


def mark(tree: ast.Module, source: str) -> ast.Module:
    """Put `marks[line] = 1` before each statement, and the marks' import before all of them.

    Args:
        tree: a module, changed in place.
        source: the file it was read from, whose marks it sets.
    """
    for parent, children in list(_bodies(tree)):
        marked = []
        for child in children:
            if _runs(child):
                marked += _statements(f"{MARKS}[{child.lineno}] = 1", child)
            marked.append(child)
        for field, value in ast.iter_fields(parent):
            if value is children:
                setattr(parent, field, marked)
    first = next((at for at, node in enumerate(tree.body) if not _is_header(node)), len(tree.body))
    tree.body[first:first] = _statements(
        f"from line_marks import marks_of as {MARKS}\n{MARKS} = {MARKS}({source!r})", None
    )
    return tree


@contextmanager
def without_marks() -> Iterator[None]:
    """Run our functions as written: torch.compile follows bytecode and can't follow a store into a mapped file."""
    finders = sys.meta_path[:]
    sys.meta_path[:] = [finder for finder in finders if not isinstance(finder, _Finder)]
    marked = {
        function: function.__code__
        for function in gc.get_objects()
        if type(function) is FunctionType and MARKS in function.__code__.co_names
    }
    plain = {path: _functions(Path(path)) for path in {code.co_filename for code in marked.values()}}
    for function, code in marked.items():
        function.__code__ = plain[code.co_filename].get((code.co_qualname, code.co_firstlineno), code)
    try:
        yield
    finally:
        for function, code in marked.items():
            function.__code__ = code
        sys.meta_path[:] = finders


class _Finder:
    """Finds our modules as Python does, and has them loaded with marks."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "genrank":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if (
            spec is not None
            and type(spec.loader) is SourceFileLoader
            and _is_measured(Path(spec.loader.path).resolve())
        ):
            spec.loader = _Loader(name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Compiles with marks, once a run: other processes of the run read the code that the first one wrote."""

    def get_code(self, fullname: str) -> CodeType:
        source = str(Path(self.path).resolve())
        compiled = Path(os.environ[FOLDER]) / f"{_key(Path(source))}-{sha256(self.path.encode()).hexdigest()[:8]}.code"
        if compiled.exists():
            return marshal.loads(compiled.read_bytes())
        code = compile(mark(ast.parse(Path(source).read_bytes()), source), self.path, "exec", dont_inherit=True)
        draft = compiled.with_suffix(f".{os.getpid()}")
        draft.write_bytes(marshal.dumps(code))
        draft.replace(compiled)
        return code


def _functions(path: Path) -> dict[tuple[str, int], CodeType]:
    """What a file compiles to without marks, by qualified name and first line."""
    found = {}
    codes = [compile(path.read_bytes(), str(path), "exec", dont_inherit=True)]
    while codes:
        code = codes.pop()
        found[code.co_qualname, code.co_firstlineno] = code
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def _is_measured(path: Path) -> bool:
    if not path.is_relative_to(ROOT):
        return False
    name = path.relative_to(ROOT).as_posix()
    return name.partition("/")[0] in PACKAGES and not any(fnmatch(name, pattern) for pattern in UNMARKED)


def _key(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().replace("/", "-")


def _marks_file(path: Path) -> Path:
    return Path(os.environ[FOLDER]) / f"{_key(path)}.marks"


def _bodies(node: ast.AST) -> Iterator[tuple[ast.AST, list[ast.stmt]]]:
    """Every list of statements with the node that holds it, but for what only a type checker reads."""
    for field, value in ast.iter_fields(node):
        if not isinstance(value, list) or (field == "body" and _is_for_types(node)):
            continue
        if value and isinstance(value[0], ast.stmt):
            yield node, value
        for child in value:
            if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
                yield from _bodies(child)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_header(node: ast.stmt) -> bool:
    """A docstring or an import from __future__, which must come first."""
    return not _runs(node)


def _runs(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.ImportFrom):
        return node.module != "__future__"
    return not isinstance(node, ast.Global | ast.Nonlocal)


def _statements(text: str, at: ast.stmt | None) -> list[ast.stmt]:
    """Statements, placed on the line of another."""
    added = ast.parse(text).body
    for one in added:
        for node in ast.walk(one):
            if hasattr(node, "lineno"):
                node.lineno = node.end_lineno = at.lineno if at else 1
                node.col_offset = node.end_col_offset = at.col_offset if at else 0
    return added
