"""Training in processes of its own: SFT, DPO, SimPO, multi-turn GRPO."""
