"""What the CUDA kernels say when they cannot be had."""


class CudaKernelsUnavailable(RuntimeError):
    """The kernels cannot be compiled or run here. The text is a plain sentence that says why."""
