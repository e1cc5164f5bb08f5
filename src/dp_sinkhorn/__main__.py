"""`python -m dp_sinkhorn` is the command `dp-sinkhorn`."""

from dp_sinkhorn.cli import main

if __name__ == "__main__":
    main()
