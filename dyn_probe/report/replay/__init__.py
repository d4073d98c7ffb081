"""A recorded run walked again with other pulls: what a remedy would have done to both sides, to first order."""
