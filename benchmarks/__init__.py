"""How fast `dw` is beside other tools and beside the limit that psql sets. `make bench` runs it."""
