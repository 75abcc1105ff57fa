import numpy as np
import pytest

pytest.register_assert_rewrite("kit")  # before anything imports it, hence E402 below

import pyrope  # noqa: E402
from kit.library import ROOT  # noqa: E402
from kit.memory import REQUIRE_GPU  # noqa: E402


def pytest_collection_modifyitems(items):
    if pyrope.device_count() > 0 or REQUIRE_GPU:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device that this pyrope can use"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20260717)


@pytest.fixture
def modules_of_bench(monkeypatch):
    """They are found, as when a program of that folder is run."""
    monkeypatch.syspath_prepend(ROOT / "bench")


@pytest.fixture
def fresh_compiler():
    """torch.compile that knows of nothing compiled before, nor leaves anything."""
    import torch  # most tests do without it

    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
