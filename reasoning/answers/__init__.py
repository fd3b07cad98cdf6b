"""Reads answers and decides whether two answers are equal."""
