"""Runs that are kept: in a folder on a disk, and by several processes that share one."""
