"""Options of a Rope that are refused: each refusal names the argument and what is allowed."""

import numpy as np
import pytest

import pyrope
from kit.memory import HAS_CUDA
from kit.refusals import T, V, refused, rows, small

NAN, INF = float("nan"), float("inf")


# ---- constructor

LLAMA3, LINEAR = pyrope.Llama3, pyrope.Linear
CONSTRUCTOR = rows(
    ("head_dim small", {"head_dim": 1}, V, "head_dim: 1, must be 2 to 1048576"),
    ("head_dim negative", {"head_dim": -64}, V, "head_dim: -64, must be 2 to"),
    ("head_dim large", {"head_dim": 2**20 + 2, "rotary_dim": 64}, V, "head_dim: 1048578, must be 2 to 1048576"),
    ("head_dim beyond 64 bits", {"head_dim": 2**64}, V, "head_dim: 18446744073709551616 does not fit 64 bits"),
    ("head_dim float", {"head_dim": 64.0}, T, "head_dim: 64.0 is not an integer"),
    ("head_dim bool", {"head_dim": True}, T, "head_dim: True is not an integer"),
    ("head_dim str", {"head_dim": "64"}, T, "head_dim: '64' is not an integer"),
    ("head_dim None", {"head_dim": None}, T, "head_dim: None is not an integer"),
    ("rotary_dim odd", {"rotary_dim": 63}, V, "rotary_dim: 63, must be even"),
    ("rotary_dim odd by default", {"head_dim": 63}, V, r"rotary_dim \(default: head_dim\): 63, must be even"),
    ("rotary_dim above head_dim", {"rotary_dim": 66}, V, "rotary_dim: 66, must be 2 to 64"),
    (
        "rotary_dim above 2048 by default",
        {"head_dim": 4096},
        V,
        r"rotary_dim \(default: head_dim\): 4096, must be 2 to 2048",
    ),
    ("rotary_dim above 2048", {"head_dim": 4096, "rotary_dim": 4096}, V, "rotary_dim: 4096, must be 2 to 2048"),
    ("rotary_dim zero", {"rotary_dim": 0}, V, "rotary_dim: 0, must be 2 to 64"),
    ("rotary_dim float", {"rotary_dim": 32.0}, T, "rotary_dim: 32.0 is not an integer"),
    ("rotary_offset negative", {"rotary_offset": -1}, V, "rotary_offset: -1, must be 0 to 0"),
    ("rotary_offset far", {"rotary_dim": 32, "rotary_offset": 33}, V, "rotary_offset: 33, must be 0 to 32"),
    ("num_q_heads negative", {"num_q_heads": -1}, V, "num_q_heads: -1, must be 0 to"),
    ("num_k_heads large", {"num_k_heads": 2**20 + 1}, V, "num_k_heads: 1048577, must be 0 to 1048576"),
    ("num_k_heads float", {"num_k_heads": 1.0}, T, "num_k_heads: 1.0 is not an integer"),
    ("no heads", {"num_q_heads": 0, "num_k_heads": 0}, V, "num_q_heads: 0 and num_k_heads: 0, at least one"),
    ("layout", {"layout": "neo"}, V, "layout: 'neo', must be one of 'neox', 'gptj'"),
    ("layout None", {"layout": None}, V, "layout: None, must be one of 'neox', 'gptj'"),
    ("dtype", {"dtype": "float64"}, V, "dtype: 'float64', must be one of 'float32', 'float16', 'bfloat16'"),
    ("dtype type", {"dtype": np.float64}, V, "dtype: <class 'numpy.float64'>, must be one of 'float32'"),
    ("angle", {"angle": "cos_sin"}, V, "angle: 'cos_sin', must be one of 'exact', 'fp32'"),
    ("device", {"device": "gpu"}, V, "device: 'gpu', must be one of 'cuda', 'cpu'"),
    ("position_dtype", {"position_dtype": "uint32"}, V, "position_dtype: 'uint32', must be one of 'int64'"),
    ("theta zero", {"theta": 0.0}, V, "theta: 0.0, must be a finite number above 0"),
    ("theta negative", {"theta": -1e4}, V, "theta: -10000.0, must be a finite number above 0"),
    ("theta nan", {"theta": NAN}, V, "theta: nan, must be a finite number above 0"),
    ("theta inf", {"theta": INF}, V, "theta: inf, must be a finite number above 0"),
    ("theta tiny", {"theta": 1e-300}, V, "theta: frequency .* must be finite and below 2.30"),
    ("theta str", {"theta": "1e4"}, T, "theta: '1e4', must be a real number"),
    ("theta bool", {"theta": True}, T, "theta: True, must be a real number"),
    ("theta None", {"theta": None}, T, "theta: None, must be a real number"),
    ("theta complex", {"theta": 1j}, T, "theta: 1j, must be a real number"),
    ("theta huge int", {"theta": 10**400}, T, "theta: 10*, must be a real number"),
    ("scaling str", {"scaling": "llama3"}, T, "scaling: 'llama3' is not a pyrope.Scaling such as"),
    ("scaling number", {"scaling": 8.0}, T, "scaling: 8.0 is not a pyrope.Scaling"),
    ("scaling class", {"scaling": LLAMA3}, T, "scaling: .* is not a pyrope.Scaling"),
    ("scaling base class", {"scaling": pyrope.Scaling()}, T, "scaling: .* is not a pyrope.Scaling"),
    ("factor zero", {"scaling": LINEAR(0)}, V, "factor: 0, must be above 0"),
    ("factor negative", {"scaling": LINEAR(-2)}, V, "factor: -2, must be a finite number above 0"),
    ("factor nan", {"scaling": LLAMA3(NAN)}, V, "factor: nan, must be a finite number above 0"),
    ("factor str", {"scaling": LINEAR("2")}, T, "factor: '2', must be a real number"),
    ("low_freq_factor", {"scaling": LLAMA3(low_freq_factor=0)}, V, "low_freq_factor: 0, must be above 0"),
    (
        "high_freq_factor",
        {"scaling": LLAMA3(high_freq_factor=0.5)},
        V,
        "high_freq_factor: 0.5, must be at least low_freq_factor, 1",
    ),
    (
        "original_max_position",
        {"scaling": LLAMA3(original_max_position=-1)},
        V,
        "original_max_position: -1, must be a finite number above 0",
    ),
    (
        "original_max_position float",
        {"scaling": LLAMA3(original_max_position=0.5)},
        T,
        "original_max_position: 0.5 is not an integer",
    ),
    ("inv_freq and theta", {"inv_freq": [1.0] * 32, "theta": 5e5}, V, "inv_freq: not allowed together with theta"),
    ("inv_freq and scaling", {"inv_freq": [1.0] * 32, "scaling": LINEAR(2)}, V, "inv_freq: not allowed .* scaling"),
    ("inv_freq short", {"inv_freq": [1.0] * 31}, V, "inv_freq: 31 values, must be rotary_dim / 2 = 32"),
    ("inv_freq number", {"inv_freq": 1.0}, T, "inv_freq: 1.0 is not a sequence of numbers"),
    ("inv_freq nan", {"inv_freq": [NAN] * 32}, V, "inv_freq: frequency 0 is .*nan, must be finite and below"),
    ("inv_freq large", {"inv_freq": [1.0] * 31 + [2.0**30]}, V, "inv_freq: frequency 31 is .*, must be .* below 2.30"),
    ("inv_freq str", {"inv_freq": ["1"] * 32}, T, "inv_freq: '1', must be a real number"),
    ("attention_factor zero", {"attention_factor": 0}, V, "attention_factor: 0, must be above 0 and finite"),
    ("attention_factor negative", {"attention_factor": -1.0}, V, "attention_factor: -1.0, must be above 0"),
    ("attention_factor nan", {"attention_factor": NAN}, V, "attention_factor: nan, must be above 0"),
    ("attention_factor large", {"attention_factor": 1e39}, V, "attention_factor: 1e.39, must be .* finite"),
    ("attention_factor small", {"attention_factor": 1e-50}, V, "attention_factor: 1e-50, must be above 0"),
    ("attention_factor str", {"attention_factor": "1"}, T, "attention_factor: '1', must be a real number"),
    ("attention_factor bool", {"attention_factor": True}, T, "attention_factor: True, must be a real number"),
    ("num_threads negative", {"num_threads": -1}, V, "num_threads: -1, must be 0 to"),
    ("num_threads float", {"num_threads": 1.5}, T, "num_threads: 1.5 is not an integer"),
    ("num_threads on cuda", {"num_threads": 2, "device": "cuda"}, V, "num_threads: 2, only allowed with device='cpu'"),
    ("enable_pdl int", {"enable_pdl": 1}, T, "enable_pdl: 1 is not a bool"),
    ("positions_ready int", {"enable_pdl": True, "positions_ready": 1}, T, "positions_ready: 1 is not a bool"),
    ("positions_ready alone", {"positions_ready": True}, V, "positions_ready: True, only allowed with enable_pdl=True"),
)


@pytest.mark.parametrize(("options", "error", "text"), CONSTRUCTOR)
def test_constructor(options, error, text):
    with refused(error, text):
        small(**options)


def test_options_are_keywords():
    with pytest.raises(TypeError, match="positional"):
        pyrope.Rope(64, 2, 1, 64)


@pytest.mark.parametrize(
    ("name", "cls", "near"),
    [("rotary_dims", pyrope.Rope, "rotary_dim"), ("rope_theta", pyrope.Rope, "theta"), ("cache", pyrope.Rope, None),
     ("norms", pyrope.FusedRope, "norm"), ("context", pyrope.FusedRope, None)],
)  # fmt: skip
def test_unknown_argument(name, cls, near):
    hint = f"; did you mean {near}\\?" if near else ""
    with refused(TypeError, f"{name}: not an argument of {cls.__name__}{hint}$"):
        cls(64, 2, 1, device="cpu", **{name: 64})


def test_a_subclass_may_take_others():
    class Named(pyrope.Rope):
        def __init__(self, name):
            super().__init__(64, 2, 1, device="cpu")
            self.name = name

    assert Named(name="mine").head_dim == 64


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cuda:0:0", "cpu:0", "gpu:1", "cuda:x", "cuda:\u0661"])
def test_numbered_device(device):
    with refused(ValueError, f"device: '{device}', must be one of 'cuda', 'cpu', or 'cuda:0' and so on"):
        small(device)


@pytest.mark.skipif(HAS_CUDA, reason="built with CUDA")
def test_built_without_cuda():
    with refused(pyrope.UnsupportedError, r"device: 'cuda' .* not in this build \(no CUDA;.*; pass device='cpu'"):
        small("cuda")
