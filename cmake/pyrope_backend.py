"""scikit-build-core, plus NVIDIA's compiler wheels where the machine has no nvcc.

PYROPE_CUDA_WHEELS=1 asks for the wheels in any case, 0 never does.
"""

import os
import shutil

from scikit_build_core import build as _build
from scikit_build_core.build import *  # noqa: F403  (the hooks that need nothing added)

# One set: the compiler's parts do not pin one another, and parts of different releases do not work together.
_WHEELS = ["cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.*"]


def _cuda_requirements(config_settings):
    settings = {key.removeprefix("cmake.define."): value for key, value in (config_settings or {}).items()}
    want = os.environ.get("PYROPE_CUDA_WHEELS", "auto")
    if want == "0" or settings.get("ROPEROPE_CUDA", "ON") != "ON":
        return []
    has_nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or os.access("/usr/local/cuda/bin/nvcc", os.X_OK)
    return [] if has_nvcc and want != "1" else _WHEELS


def get_requires_for_build_wheel(config_settings=None):
    return [*_build.get_requires_for_build_wheel(config_settings), *_cuda_requirements(config_settings)]


def get_requires_for_build_editable(config_settings=None):
    return [*_build.get_requires_for_build_editable(config_settings), *_cuda_requirements(config_settings)]
