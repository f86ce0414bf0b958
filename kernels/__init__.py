"""Triton kernels, each beside its PyTorch reference and its public op. Imports nothing else of genrank."""
