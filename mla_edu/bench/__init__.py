"""How fast the decode kernel is: the steps to measure, the clock, the peers, and what was found."""
