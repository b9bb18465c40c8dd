"""One file a peer: fit(question), pairwise(question, fitted), and what it computes."""
