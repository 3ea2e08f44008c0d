"""What a GPU gives: `python -m bench.gpu`, in one command, its table last. It runs on the CPU provider too."""
