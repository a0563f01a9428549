"""`python -m verl_toolrl.cli` is `verl-toolrl`."""

from verl_toolrl.cli import main

main()
