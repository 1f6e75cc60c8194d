"""BIRD 2 in the place of FRR at a border router: the same plan, in BIRD's words, and its check."""
