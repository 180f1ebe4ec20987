"""Pictures of runs, sweeps and seeds, in one style that is readable on light pages and on dark ones."""
