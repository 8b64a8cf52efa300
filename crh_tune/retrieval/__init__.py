"""Codes in, numbers out: packing, Hamming ranking, mean average precision, semantic alignment."""
