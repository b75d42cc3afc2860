"""`python -m llmrec_ray` is the `llmrec` command, so that `ray job submit` can name it."""

from llmrec_ray.cli import main

if __name__ == "__main__":
    main()
