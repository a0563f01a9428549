"""The only place that imports verl, vllm, sglang and ray.

Nothing here is imported before verl itself has loaded the part that it extends (see `on_import`).
"""
