"""Memory that did not suffice is known by what torch and the libraries really raise."""

import pytest
import torch

from core.out_of_memory import is_out_of_memory, raise_shortage

MORE_THAN_THERE_IS = 2**46
"""Values; the system refuses them at once, and nothing is allocated."""


def refusal() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(MORE_THAN_THERE_IS)
    return caught.value


def test_what_torch_raises_on_the_cpu_is_one_and_other_errors_are_not() -> None:
    assert type(refusal()) is RuntimeError
    assert is_out_of_memory(refusal())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    with pytest.raises(RuntimeError) as caught:
        torch.dot(torch.zeros(2), torch.zeros(3))
    assert not is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError(str(refusal())))


def test_one_behind_another_error_is_raised_and_other_errors_pass() -> None:
    try:
        try:
            raise refusal()
        except RuntimeError:
            raise OSError("Unable to load weights from checkpoint file")  # noqa: B904
    except OSError as error:
        wrapped = error
    with pytest.raises(MemoryError, match="DefaultCPUAllocator") as caught:
        raise_shortage(wrapped)
    assert caught.value.__cause__ is wrapped
    circular = OSError("a")
    circular.__context__ = ValueError("b")
    circular.__context__.__context__ = circular
    raise_shortage(circular)
