"""The long form: `make faults`. Figures go to docs/reliability.md, between its marks."""
