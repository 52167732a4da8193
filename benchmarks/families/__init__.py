"""One job per family of sources: `dw run` beside the plainest script that does the same."""
