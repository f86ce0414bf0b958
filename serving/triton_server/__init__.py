"""A model of NVIDIA's Triton Inference Server (not the language Triton): `genrank export --triton`.

    repository.py  a version of a model in a model repository: the export, config.pbtxt and model.py
    backend.py     what model.py runs: Triton's Python backend on the loader of exports
    interface.py   of Triton's own module, what that uses

Within Triton it needs genrank and its dependencies in the Python that runs the backend; not the extra `serve`.
"""
