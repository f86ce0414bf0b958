"""`--schema path.py:NAME`, `schema.yaml` or `schema.json`: from what a user types to a Schema."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

from pydantic import ValidationError

from genrank.schemas.errors import SchemaError, UserError
from genrank.schemas.expression import nearest
from genrank.schemas.present.serialization import from_json, from_yaml
from genrank.schemas.pydantic_errors import readable
from genrank.schemas.schema import Schema


def load_schema(spec: str) -> Schema:
    """The schema at `path.py:NAME` (NAME defaults to `schema`), or in a `.json`, `.yaml` or `.yml` file.

    Raises:
        UserError: no such file, no such name, not a Schema, or a declaration that doesn't hold (every mistake, one a line).
    """
    path_text, _, name = spec.partition(":")
    path, where = Path(path_text), f"--schema {spec}"
    if not path.is_file():
        raise UserError(
            f"{where}: there is no file {path}; write it as path/to/schema.py:NAME, or a .yaml or .json file"
        )
    if path.suffix in (".json", ".yaml", ".yml"):
        if name:
            raise UserError(f"{where}: a {path.suffix} file holds one schema; leave :{name} out")
        return (from_json if path.suffix == ".json" else from_yaml)(path.read_bytes(), where=where)
    if path.suffix != ".py":
        raise UserError(f"{where}: {path} is neither .py nor .yaml nor .json")
    found = _run(path, where)
    schema = found.get(name or "schema")
    if not isinstance(schema, Schema):
        names = sorted(key for key, value in found.items() if isinstance(value, Schema))
        if not name and len(names) == 1:
            raise UserError(f"{where}: name the schema: --schema {path}:{names[0]}")
        raise UserError(f"{where}: {path} has no schema {name or 'schema'!r}{nearest(name or 'schema', names)}")
    return schema


def _run(path: Path, where: str) -> dict[str, object]:
    """The names a Python file defines."""
    module_name = f"genrank_schema_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    assert module_spec is not None and module_spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        module_spec.loader.exec_module(module)
    except SchemaError as error:
        raise SchemaError(where, error.mistakes) from error
    except ValidationError as error:
        raise SchemaError(f"{where}: {_line(path, error)}", readable(error)) from error
    except SyntaxError as error:
        raise UserError(f"{where}: {error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:
        raise UserError(f"{where}: {_line(path, error)}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return dict(vars(module))


def _line(path: Path, error: Exception) -> str:
    """`schema.py:12`: where in the user's file it happened."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)
