"""A language model small enough to be trained on a laptop's processor, and a text that every reader has."""
