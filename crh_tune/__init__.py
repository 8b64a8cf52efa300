"""Find, train and hand over binary codes for image retrieval with Center-Reassigned Hashing."""

__version__ = "0.1.0"
