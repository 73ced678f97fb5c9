"""Runtimes: run a network on torch (``eager`` on a CPU, ``cuda`` on a GPU) or on ``openvino``.

``choice`` resolves which runtime and precision to use; ``run`` puts a torch network onto it and checks the
``agreement`` of its embeddings with eager float32; ``conversion`` converts networks for OpenVINO and caches them;
``quantisation`` makes them 8-bit, with linear layers as convolutions (``pointwise``) where that is faster.
"""
