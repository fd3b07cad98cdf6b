"""Runs vLLM's API server. On a CPU, its engine process is forked from it; see docs/decisions/0015."""

import multiprocessing

from models.inference.devices import on_cpu

if __name__ == "__main__":
    if on_cpu():
        import vllm.utils.system_utils as vllm_processes

        # Must come before the import below, which copies the name.
        vllm_processes.get_mp_context = lambda: multiprocessing.get_context("fork")
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
