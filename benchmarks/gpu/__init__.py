"""Every kernel on a GPU: first right, then how fast. The command is `python -m benchmarks.gpu`; see `__main__.py`."""
