"""What the first screen says: what happened, what moved it, how sure that is, and which change would have helped."""
