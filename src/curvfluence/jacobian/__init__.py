"""How an example's rows of Jᵀ are found: as sums of s ⊗ a, layer by layer."""
