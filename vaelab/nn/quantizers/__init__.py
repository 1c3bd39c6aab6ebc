"""Codebooks: finite sets of codes, the rule that chooses one, the gradient through it, and how codes are learned.

van den Oord, Vinyals & Kavukcuoglu, "Neural Discrete Representation Learning", 2017.
"""

from vaelab.nn.quantizers.base import Chosen, Codebook, Quantized, by_book, code_counts, perplexity
from vaelab.nn.quantizers.learned import EMACodebook, GradientCodebook
from vaelab.nn.quantizers.search import nearest_code

__all__ = [
    "Chosen",
    "Codebook",
    "EMACodebook",
    "GradientCodebook",
    "Quantized",
    "by_book",
    "code_counts",
    "nearest_code",
    "perplexity",
]
