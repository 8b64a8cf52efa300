"""Codes, ids and labels as a store loads them, with a README of the commands: ``crh-tune handover``.

Every folder has ``items.csv`` (id, label, item: what the ids mean), the data in the store's own form, a script or SQL
that loads it and one that asks, and the README. A graph index (HNSW) is built only where it is asked for: learned codes
of one class collapse onto each other, and it then misses neighbours at distance 0. Its recall is measured first.
"""

from crh_tune.serving.handover.stores import STORES, hand_over

__all__ = ["STORES", "hand_over"]
