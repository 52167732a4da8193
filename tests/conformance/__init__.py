"""What every connector promises, tried on every connector: one table of connectors × scenarios.

    cases/postgres.py      one connector: where its server is, and how rows get into it
    case.py                what a case is
    test_conformance.py    the scenarios
    test_wizard.py         one more: the source is added by a person who answers questions
    wizard.py              that person

A connector joins by one file in `cases/` with a `CASE` in it, named like the protocol. A scenario that has
no meaning for a connector stands in its `absent`, with the reason.
"""
