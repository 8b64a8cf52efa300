"""The algorithm: codebooks, reassignment, objectives, the hash network. Needs torch, numpy and scipy only."""
