"""The tests' own set-up: calls are checked, and tests that share a fixture run on one worker."""

import beartype
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from tests.checks import checked

check = checked(typechecker=beartype.beartype)


@check
def summed(x: Float[Tensor, "batch dim"], y: Float[Tensor, "batch dim"], *, n: int = 1) -> Float[Tensor, "dim"]:
    return (n * (x + y)).sum(0) if n else x


@check
def counted(names: list[str]) -> int:
    return len(names) if names else None  # pyright: ignore


def made(by: float):
    @check
    def scaled(x: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return x * by if by else x[:-1]

    return scaled


def test_shapes_and_types_of_arguments_and_results_are_checked():
    x = torch.ones(3, 2)
    assert summed(x, x, n=2).tolist() == [12, 12] and counted(["a"]) == 1
    wrong = [(x, x[:2]), (x, x[0]), (x, x.long()), (x, "x")]
    for given in wrong:
        with pytest.raises(TypeCheckError):
            summed(*given)
    for n in ("1", 0):  # for 0, the result has another shape
        with pytest.raises(TypeCheckError):
            summed(x, x, n=n)
    for names in ("a", [1], []):
        with pytest.raises(TypeCheckError):
            counted(names)


def test_functions_of_one_def_are_checked_and_keep_what_is_theirs():
    twice, thrice, shortened = made(2.0), made(3.0), made(0.0)
    x = torch.ones(3)
    assert (twice(x).sum(), thrice(x).sum()) == (6, 9)
    for function in (twice, thrice):
        with pytest.raises(TypeCheckError):
            function(x[None])
    with pytest.raises(TypeCheckError):
        shortened(x)


def test_tests_that_share_a_fixture_run_on_one_worker(request):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("needs -n and --dist loadgroup")
    groups = {item.nodeid: item.get_closest_marker("xdist_group") for item in request.session.items}
    assert all(name.endswith(f"@{marker.args[0]}") for name, marker in groups.items() if marker)
