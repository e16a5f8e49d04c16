"""Jobs: runs that are queued, worked off by processes of their own, stopped, continued, never lost.

`service` is what an interface calls; `store` is the queue on the disk, `worker` the process that
computes, `supervisor` what starts workers and starts them again. Nothing but the worker's process
imports torch.
"""
