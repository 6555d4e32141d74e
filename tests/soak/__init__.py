"""`make soak`: everything that can happen to a balancer, at random and under load, and what may be excused by it."""
