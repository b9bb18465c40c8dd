"""I[q, n] = (1/N) g_qᵀ (C + diag(w) + λI)⁻¹ g_n, of examples, groups, themselves and tokens."""
