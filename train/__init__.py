"""Training code of TextSAM."""

import torch

# Far from zero GELU's derivative makes gradients too small for normal numbers, with which a CPU reckons up to forty
# times slower: as zeros they make a step of textsam-tiny two and a half times as fast. Threads inherit it from the one
# that starts them, so it comes before anything is computed.
torch.set_flush_denormal(True)
