"""pyrope at home in torch: tensors, gradients, torch.compile and torch.export, and ranks of a sequence.

``import pyrope.torch`` imports torch, ``import pyrope`` does not. Nothing here is compiled against torch.
"""

from pyrope.torch._attention import attention
from pyrope.torch._functions import apply, apply_
from pyrope.torch._module import RotaryEmbedding
from pyrope.torch._parallel import rank_positions

__all__ = ["RotaryEmbedding", "apply", "apply_", "attention", "rank_positions"]
