"""`python -m anomaly_vae.cli`: the command without its script."""

from . import main

main()
