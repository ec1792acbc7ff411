"""The sweeps of the papers and of the demo: `lottery-nb grids` lists them, `lottery-nb sweep NAME` runs one."""
