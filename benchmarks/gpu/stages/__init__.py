"""The stages of a run on a GPU, a file each: what it measures, in parts that are kept one by one."""
