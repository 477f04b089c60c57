"""Training of camera ISPs by unbalanced optimal transport, with or without pairs."""

MAX_SEED = 2**63 - 1
"""What torch and NumPy both take."""
