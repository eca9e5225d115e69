"""What tutorials claim, audited against what was measured and planned."""
