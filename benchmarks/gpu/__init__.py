"""Every kernel on a GPU: first correctness, then speed. The command is `python -m benchmarks.gpu`; see `__main__.py`."""
