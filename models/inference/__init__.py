"""Sampling: engines, the scheduler in front of them, the rollout store behind them."""
