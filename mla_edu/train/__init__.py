"""Training of a model small enough for a laptop's processor, and a text that every reader has."""
