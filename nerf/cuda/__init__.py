"""CUDA kernels from a plain `pip install`: compiled at their first use by NVRTC, kept on disk.

Neither a compiler nor CUDA's toolkit is needed: torch's CUDA wheels for Linux bring NVRTC and its
Python bindings. The kernels are tested by a build of the same files for the host, and compiled for
every architecture; they have not been run on a GPU by this project yet.
"""
