"""The files that Triton Inference Server reads.

models/ranker/config.pbtxt          written once; yours to change
models/ranker/1/model.py            Triton's entry point, of a few lines
models/ranker/1/export/             what `genrank export --out` writes
models/ranker/2/...                 the next export
"""

from __future__ import annotations

import re
from pathlib import Path

from genrank.schemas.errors import UserError
from genrank.schemas.files import write_atomically
from genrank.serving.exported import ExportManifest

INSIDE = "export"
"""The export's folder in a version's."""
CONFIG = "config.pbtxt"
REQUEST = "REQUEST"
"""The one input."""

_MODEL = '''\
"""Triton's entry point of a genrank export; `genrank export --triton` wrote it."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from genrank.serving.triton_server.backend import Backend


class TritonPythonModel:
    def initialize(self, args):
        self.backend = Backend(Path(__file__).parent / "{inside}", args, pb_utils)

    def execute(self, requests):
        return self.backend.execute(requests)

    def finalize(self):
        self.backend = None
'''

_CONFIG = """\
# Written by `genrank export --triton`, once: change it as you like, later exports leave it as it is.
name: "{name}"
backend: "python"

# Requests of one execution at most; the backend cuts them by batch_tokens, too.
max_batch_size: 64
dynamic_batching {{ max_queue_delay_microseconds: 2000 }}

# A request's row as a JSON object (a line of what `genrank requests` writes), or as an Arrow IPC stream of one row.
input [
  {{ name: "{request}" data_type: TYPE_STRING dims: [ 1 ] }}
]
# A score of every candidate, in the request's order.
output [
{outputs}
]

instance_group [ {{ kind: {kind} count: 1 }} ]
version_policy: {{ latest {{ num_versions: 1 }} }}

# As the flags of `genrank serve`.
parameters {{ key: "batch_tokens" value: {{ string_value: "16384" }} }}
parameters {{ key: "max_candidates" value: {{ string_value: "10000" }} }}
parameters {{ key: "micro_batch" value: {{ string_value: "0" }} }}
parameters {{ key: "user_cache_mb" value: {{ string_value: "0" }} }}
parameters {{ key: "cache_storage" value: {{ string_value: "float32" }} }}
"""


def next_version(model: Path) -> Path:
    """The folder of the version that comes next.

    Raises:
        UserError: the model's folder can't be one of Triton's, or holds what is none of its.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", model.resolve().name):
        raise UserError(
            f"--triton {model}: the folder's name becomes the model's, of letters, digits, '_', '-' and '.'; give another"
        )
    if model.exists() and any(model.iterdir()) and not (model / CONFIG).is_file():
        raise UserError(
            f"--triton {model} holds files and no {CONFIG}; give a new folder, or that of a model exported before"
        )
    return model / str(1 + (_versions(model) or [0])[-1])


def add_version(model: Path, staged: Path, manifest: ExportManifest) -> None:
    """Make an export a version: `model.py` beside it, and `config.pbtxt` where there is none.

    Args:
        model: the model's folder.
        staged: the version's folder before it is published, with the export in INSIDE.
        manifest: the export's.

    Raises:
        UserError: `config.pbtxt` is of a run with other labels.
    """
    config = model / CONFIG
    if config.is_file():
        text = config.read_text()
        if lacking := [task for task in tasks_of(manifest) if f'"{task}"' not in text]:
            raise UserError(
                f"--triton {model}: {CONFIG} has no output {', '.join(lacking)}, which this run predicts; give another folder, or delete"
                " it to have it written anew"
            )
    else:
        write_atomically(config, config_of(model.resolve().name, manifest))
    (staged / "model.py").write_text(_MODEL.format(inside=INSIDE))


def tasks_of(manifest: ExportManifest) -> tuple[str, ...]:
    """The labels, in the order of the outputs."""
    return tuple(label.name for label in manifest.declared.labels)


def config_of(name: str, manifest: ExportManifest) -> str:
    """`config.pbtxt` of an export."""
    outputs = ",\n".join(f'  {{ name: "{task}" data_type: TYPE_FP32 dims: [ -1 ] }}' for task in tasks_of(manifest))
    kind = "KIND_GPU" if manifest.device == "cuda" else "KIND_CPU"
    return _CONFIG.format(name=name, request=REQUEST, outputs=outputs, kind=kind)


def _versions(model: Path) -> list[int]:
    """Ascending."""
    return sorted(int(path.name) for path in model.glob("[0-9]*") if path.name.isdecimal() and path.is_dir())
