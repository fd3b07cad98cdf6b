"""Training in separate processes: SFT, DPO, SimPO, multi-turn GRPO."""
