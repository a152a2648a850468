"""What esa-ray costs on a GPU, beside plain code on the same card: ``python -m benchmarks gpu [--out DIR] [--quick]``.

One file a part. A part gets a :class:`benchmarks.gpu.bench.Bench` and notes figures in it; without a card every part
runs on the CPU, at a size of seconds, so that all of it is tried where there is none. Needs neither ray nor polars.
"""
