"""The process of a server: a socket, uvicorn, and an orderly end."""

from __future__ import annotations

import ipaddress
import socket

import uvicorn

from genrank.model.ranks import own_device
from genrank.schemas.console import logger
from genrank.schemas.errors import UserError
from genrank.serving.server.app import Server, make_app
from genrank.serving.server.config import ServeConfig
from genrank.serving.server.metrics import Metrics
from genrank.serving.server.models import ModelSlot
from genrank.serving.user_cache import UserCache


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; then requests at work are answered, and no new one is taken.

    Raises:
        UserError: the model can't be loaded, or the address is taken.
    """
    metrics = Metrics()
    listening = _listen(config.host, config.port)
    with listening:
        cache = None
        if config.user_cache_mb:
            cache = UserCache(int(config.user_cache_mb * 1_000_000), storage=config.cache_storage)
            metrics.watch(cache)
        device = str(own_device(config.device))
        slot = ModelSlot(
            config.model, device, config.max_candidates, metrics, micro_batch=config.micro_batch, cache=cache
        )
        app = make_app(Server(slot, config, metrics))
        host, port = listening.getsockname()[:2]
        if not ipaddress.ip_address(host).is_loopback:
            logger.warning(f"listening on {host}: whoever reaches this address may ask for scores")
        logger.info(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}")
        uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=config.drain_seconds,
                timeout_keep_alive=30,
            )
        ).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}; choose another"
        ) from None
    return listening
