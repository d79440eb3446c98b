"""`python -m theodolite`: the `theodolite` command where its script is not on the path."""

from theodolite.recipes.cli import main

if __name__ == "__main__":
    main()
