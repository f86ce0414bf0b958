"""What `genrank serve` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from genrank.schemas.configuration import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, Configuration, Flag, Panel
from genrank.serving.request_contract import MAX_CANDIDATES

LIMITS = Panel("Limits")
BATCHES = Panel("Batches")
CACHE = Panel("User cache")
Storage = Literal["bf16", "float32", "int8"]
"""As `serving.stored_keys`, which needs torch and a command's help does not."""


@dataclass(frozen=True)
class ServeConfig(Configuration):
    """One server."""

    model: Annotated[Path, Flag(metavar="DIR")]
    """The --out folder of `genrank train`, or a checkpoint's own."""
    host: str = "127.0.0.1"
    """Address to listen on. There is no authentication: put what has it in front before you listen beyond loopback."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8_000
    """0: any free one, which a log line names."""
    device: str = "auto"
    """cpu, cuda or auto."""
    batch_tokens: Annotated[int, AT_LEAST_1, BATCHES] = 16_384
    """Tokens that are scored together at most; a larger request is scored by itself."""
    batch_wait_ms: Annotated[float, NOT_NEGATIVE, BATCHES] = 2.0
    """How long the first request of a batch waits for others."""
    micro_batch: Annotated[int, AT_LEAST_0, BATCHES] = 0
    """Candidates that pass through the model at once, against their users' keys and values (M-FALCON); 0: all in one pass."""
    user_cache_mb: Annotated[float, NOT_NEGATIVE, CACHE] = 0
    """Memory of the device for users' keys and values between requests; 0: none are kept."""
    cache_storage: Annotated[Storage, CACHE] = "float32"
    """How they are kept: bf16 and int8 take less memory and change scores by their rounding."""
    max_candidates: Annotated[int, AT_LEAST_1, LIMITS] = MAX_CANDIDATES
    """Of one request; more are refused with 422."""
    max_body_mb: Annotated[float, Field(gt=0), LIMITS] = 16.0
    """Size of a body, of a compressed Arrow stream once it is decompressed; a larger one is refused with 413."""
    max_concurrency: Annotated[int, AT_LEAST_1, LIMITS] = 256
    """Bodies at work at once; the next one is refused with 429."""
    body_seconds: Annotated[float, Field(gt=0), LIMITS] = 30.0
    """Time that a sender may take for its body; then 408."""
    reload_seconds: Annotated[float, NOT_NEGATIVE] = 5.0
    """How often to look for a new checkpoint or export in DIR; 0: never."""
    drain_seconds: Annotated[int, AT_LEAST_1] = 30
    """After SIGTERM: how long requests at work may take."""
