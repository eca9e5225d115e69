"""Words and facts that everything else is said in; stdlib, numpy and scipy only."""
