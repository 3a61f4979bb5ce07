"""Proof that training is exact: runs compared, killed and resumed, and steps done again."""
