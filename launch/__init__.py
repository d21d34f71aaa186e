"""Starts processes that find each other; JAX's own runtime does the rest.

A process joins a cluster where JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID are set, or where EAIN_DISTRIBUTED=detect and JAX finds it by
itself. Everything here sets one or the other and starts the same command.
"""
