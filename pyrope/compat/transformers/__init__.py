"""transformers' functions that rotate q and k (5.24), by pyrope; and all rotations of a loaded model.

``apply_rotary_pos_emb`` is Llama's, which most models have, and its like for heads of which a part turns;
``functions("glm")`` has those of any model's module. They have gradients, of q and k. pyrope/compat/README.md says what
differs.
"""

from pyrope.compat.transformers._families import functions
from pyrope.compat.transformers._forms import Form, q_and_k
from pyrope.compat.transformers._patch import patch, unpatch

apply_rotary_pos_emb = q_and_k(Form())
apply_rotary_pos_emb_interleave = functions("deepseek_v3")["apply_rotary_pos_emb_interleave"]
apply_rotary_pos_emb_vision = functions("qwen2_vl")["apply_rotary_pos_emb_vision"]
apply_rotary_emb = functions("llama4")["apply_rotary_emb"]

__all__ = [
    "apply_rotary_emb",
    "apply_rotary_pos_emb",
    "apply_rotary_pos_emb_interleave",
    "apply_rotary_pos_emb_vision",
    "functions",
    "patch",
    "unpatch",
]
