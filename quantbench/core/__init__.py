"""The types and facts that everything else is built on; standard library, numpy and scipy only."""
