"""``python -m dyn_probe_cli``: the same commands, for launchers that start modules."""

from dyn_probe_cli.app import main

main()
