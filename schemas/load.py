"""`--schema path.py:NAME`: from what a user types to a Schema."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from pydantic import ValidationError

from schemas.errors import UserError
from schemas.schema import Schema


def load_schema(spec: str) -> Schema:
    """The schema at `path.py:NAME` (NAME defaults to `schema`).

    Raises:
        UserError: no such file, no such name, not a Schema, or a declaration that doesn't hold.
    """
    path_text, _, name = spec.partition(":")
    path, name = Path(path_text), name or "schema"
    if not path.is_file():
        raise UserError(f"--schema {spec}: there is no file {path}; write it as path/to/schema.py:NAME")
    module_spec = importlib.util.spec_from_file_location(f"genrank_schema_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--schema {spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        module_spec.loader.exec_module(module)
    except ValidationError as error:
        raise UserError(f"--schema {spec}: " + "; ".join(e["msg"] for e in error.errors())) from error
    except Exception as error:
        raise UserError(f"--schema {spec}: importing {path} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, name, None)
    if not isinstance(found, Schema):
        names = sorted(k for k, v in vars(module).items() if isinstance(v, Schema))
        raise UserError(f"--schema {spec}: {path} has no schema {name!r}; it has {names or 'none'}")
    return found
