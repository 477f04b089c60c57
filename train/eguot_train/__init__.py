"""Training of camera ISPs by unbalanced optimal transport, with or without pairs."""
