module chatmetrics/tests/benchmarks/proxy

go 1.20
