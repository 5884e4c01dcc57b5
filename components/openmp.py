"""How long threads of OpenMP spin while they wait for each other, for training on a CPU and for llama.cpp."""

# Spinning without end, the default, answers are twenty times slower as soon as another program needs one of the cores.
# Sleeping at once, a small model trains 12 % slower and answers 40 % slower when none does. A short spin loses little
# in both cases. GOMP_SPINCOUNT is of GCC's OpenMP, which takes it first; others know only the policy.
SHORT_SPIN = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
