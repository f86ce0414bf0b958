"""`genrank serve`: scores over HTTP.

    app.py       routes, limits, answers and errors
    batching.py  requests that arrive together are scored together
    models.py    the model being served, and the next one, picked up while the old one finishes
    metrics.py   Prometheus metrics
    run.py       the process: socket, signals, uvicorn

Needs the extra `serve` (FastAPI, uvicorn, prometheus-client); no other package imports this one.
"""
